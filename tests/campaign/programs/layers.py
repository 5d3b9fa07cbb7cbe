"""Steps that call a layer, an activation or a function of the same kind."""

from __future__ import annotations

from typing import Any

from campaign.programs.builder import CHANNELS, StepBuilder

__all__ = ["LayerSteps"]


class LayerSteps(StepBuilder):
    """Layers, normalizations, activations, pooling, attention."""

    def conv(self) -> bool:
        x, r = self.x, self.rng
        dims = x.dim() - 2
        if dims not in (1, 2):
            return self.linear()
        inner = x.shape[1]
        kernel = [r.choice((1, 1, 2, 3, 3, 3, 4, 5)) for _ in range(dims)]
        groups, outer = 1, r.choice(CHANNELS)
        kind = r.random()
        if kind < 0.15:
            groups, outer = inner, inner * r.choice((1, 1, 2))
        elif kind < 0.4:
            groups = r.choice([g for g in range(1, inner + 1) if inner % g == 0])
            outer = groups * r.choice((1, 2, 3))
        stride = [r.choice((1, 1, 1, 2, 3)) for _ in range(dims)]
        dilation = [r.choice((1, 1, 1, 2)) for _ in range(dims)]
        padding: Any = [r.choice((0, 1, 1, 2)) for _ in range(dims)]
        if self.chance(0.2):
            padding, stride = "same", [1] * dims
        elif self.chance(0.05):
            padding = "valid"
        mode = r.choice(("zeros",) * 7 + ("reflect", "replicate", "circular"))
        name = self.name("c")
        extra = "" if mode == "zeros" else f", padding_mode={mode!r}"
        text = (
            (
                f"self.{name} = nn.Conv{dims}d({inner}, {outer}, {tuple(kernel)}, stride={tuple(stride)}, "
                f"padding={padding if isinstance(padding, str) else tuple(padding)!r}, dilation={tuple(dilation)}, "
                f"groups={groups}, bias={self.chance(0.5)}{extra})"
            )
            .replace("padding=same", "padding='same'")
            .replace("padding=valid", "padding='valid'")
        )
        tag = (
            "conv"
            + (" same" if padding == "same" else "")
            + ("" if mode == "zeros" else f" {mode}")
        )
        kept = self.add(tag, [text], [f"x = self.{name}(x)"])
        self.layers += [name] if kept else []
        return kept

    def transposed(self) -> bool:
        x, r = self.x, self.rng
        dims = x.dim() - 2
        if dims not in (1, 2):
            return False
        groups = r.choice([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
        outer = groups * r.choice((1, 2, 4, 8))
        stride, dilation = r.choice((1, 2, 2, 3)), r.choice((1, 1, 2))
        more = r.randrange(max(stride, dilation))
        name = self.name("t")
        text = (
            f"self.{name} = nn.ConvTranspose{dims}d({x.shape[1]}, {outer}, {r.choice((1, 2, 3, 4))}, "
            f"stride={stride}, padding={r.choice((0, 0, 1, 2))}, output_padding={more}, "
            f"groups={groups}, dilation={dilation}, bias={self.chance(0.5)})"
        )
        kept = self.add("transposed conv", [text], [f"x = self.{name}(x)"])
        self.layers += [name] if kept else []
        return kept

    def linear(self) -> bool:
        name = self.name("l")
        outer = self.rng.choice(CHANNELS)
        text = f"self.{name} = nn.Linear({self.x.shape[-1]}, {outer}, bias={self.chance(0.5)})"
        kept = self.add("linear", [text], [f"x = self.{name}(x)"])
        self.layers += [name] if kept else []
        return kept

    def again(self) -> bool:
        return bool(self.layers) and self.add(
            "shared layer", [], [f"x = self.{self.rng.choice(self.layers)}(x)"]
        )

    def norm(self) -> bool:
        x = self.x
        if x.dim() not in (2, 3, 4):
            return False
        name = self.name("b")
        extra = self.pick(
            *("",) * 12,
            ", affine=False",
            ", eps=0.0",
            ", track_running_stats=False",
            ", momentum=None",
            ", eps=1.0",
        )
        kind = "2d" if x.dim() == 4 else "1d"
        return self.add(
            "batch norm" + extra.split("=")[0][1:],
            [f"self.{name} = nn.BatchNorm{kind}({x.shape[1]}{extra})"],
            [f"x = self.{name}(x)"],
        )

    def sums(self) -> bool:
        """Add a normalisation, reduction, softmax, matrix product or attention."""
        x, r = self.x, self.rng
        rank, name, last = x.dim(), self.name("s"), x.shape[-1]
        if rank < 2:
            return False
        dims = tuple(sorted(r.sample(range(1, rank), r.randint(1, rank - 1))))
        groups = r.choice([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
        heads = r.choice([h for h in range(1, last + 1) if last % h == 0])
        modules = {
            "layer norm": f"nn.LayerNorm({tuple(x.shape[-r.randint(1, rank - 1) :])})",
            "rms norm": f"nn.RMSNorm({last})",
            "group norm": f"nn.GroupNorm({groups}, {x.shape[1]}, affine={self.chance(0.5)})",
            "attention layer": f"nn.MultiheadAttention({last}, {heads}, batch_first={self.chance(0.5)})",
        }
        functions = {
            "mean over": f"x = x.mean({dims}, keepdim={self.chance(0.5)})",
            "sum over": f"x = x.sum({dims}, keepdim={self.chance(0.5)})",
            "largest": f"x = x.amax({dims}, keepdim={self.chance(0.5)})",
            "smallest": f"x = torch.min(x, {dims[0]})[0]",
            "softmax": f"x = F.softmax(x, dim={r.randrange(rank)})",
            "log softmax": f"x = torch.log_softmax(x, {r.randrange(-rank, rank)})",
            "product": "x = x @ x.transpose(-1, -2)",
            "batched product": "x = torch.matmul(x.transpose(-1, -2), x)",
            "attention": f"x = F.scaled_dot_product_attention(x, x, x, is_causal={self.chance(0.5)})",
            "reflection": "x = F.pad(x, (1, 1), mode='reflect')",
            "circle": "x = F.pad(x, (1, 0), mode='circular')",
            "edge": "x = F.pad(x, (0, 2), mode='replicate')",
            "shuffle": "x = F.pixel_shuffle(x, 2)",
        }
        tag = r.choice((*modules, *functions))
        if tag not in modules:
            return self.add(tag, [], [functions[tag]])
        call = f"self.{name}(x, x, x)[0]" if tag == "attention layer" else f"self.{name}(x)"
        return self.add(tag, [f"self.{name} = {modules[tag]}"], [f"x = {call}"])

    def activation(self) -> bool:
        r = self.rng
        name, c = self.name("a"), self.x.shape[1] if self.x.dim() > 1 else 1
        modules = (
            "nn.ReLU()",
            "nn.ReLU()",
            "nn.ReLU(inplace=True)",
            "nn.ReLU6()",
            "nn.Hardtanh(-0.4, 0.8)",
            "nn.Hardtanh(0.0, 3.0, inplace=True)",
            "nn.LeakyReLU(0.3)",
            "nn.LeakyReLU(-0.5)",
            "nn.LeakyReLU(0.1, inplace=True)",
            "nn.PReLU()",
            f"nn.PReLU({c})",
            f"nn.PReLU({c}, init=-0.5)",
            "nn.GELU()",
            "nn.SiLU()",
            "nn.Sigmoid()",
            "nn.Hardswish()",
            "nn.Hardswish(inplace=True)",
            "nn.ELU(inplace=True)",
            "nn.Tanh()",
            "nn.Softplus()",
            "nn.Identity()",
            "nn.Dropout(0.5)",
            "nn.Dropout(0.5, inplace=True)",
            "nn.AlphaDropout()",
            "nn.LogSoftmax(1)",
            "nn.Softmax(-1)",
            "nn.Hardsigmoid()",
            "nn.Mish()",
            "nn.GELU('tanh')",
            "nn.Softplus(2.0, 5.0)",
            "nn.Threshold(0.1, 0.0)",
        )
        functions = (
            "x = F.relu(x)",
            "x = x.relu()",
            "x = torch.relu(x)",
            "x = F.relu6(x)",
            "x = F.hardtanh(x, -0.5, 0.5)",
            "x = F.leaky_relu(x, 0.2)",
            "x = F.hardswish(x)",
            "x = x.clamp(0, 1)",
            "x = torch.clamp(x, min=0.0)",
            "x = x.abs()",
            "x = F.hardsigmoid(x)",
            "x = x.clamp(max=0.5)",
            "x = x.clamp_min(-0.25)",
            "x = x**2",
            "x = x.square().sqrt()",
            "x = (x.abs() + 0.5).rsqrt()",
            "x = (x.abs() + 0.5).reciprocal()",
            "x = x.clamp_max(3.0).exp()",
            "x = (x.abs() + 1.0).log()",
            "x = F.gelu(x, approximate='tanh')",
            "x = F.silu(x)",
            "x = F.mish(x)",
            "x = F.elu(x, 0.5)",
            "x = x.sigmoid()",
            "x = torch.tanh(x)",
            "x = F.dropout(x, 0.5, self.training)",
            "x = torch.where(x > 0, x, x * 0.1)",
            "x = torch.maximum(x, torch.zeros_like(x))",
            "x = x.sign()",
            "x = x.softmax(1)",
            "x = -x",
            "x = x.round()",
            "x = x.float()",
            "x = x.to(torch.float32)",
            "x = x.double().float()",
            "x = x.contiguous()",
            "x = x.clone()",
            "x = x.detach()",
        )
        if self.chance(0.6):
            text = r.choice(modules)
            return self.add(
                text.split("(")[0][3:], [f"self.{name} = {text}"], [f"x = self.{name}(x)"]
            )
        text = r.choice(functions)
        return self.add(text[4:], [], [text])

    def pool(self) -> bool:
        dims = self.x.dim() - 2
        if dims not in (1, 2):
            return False
        name = self.name("p")
        text = self.pick(
            f"nn.MaxPool{dims}d(2)",
            f"nn.MaxPool{dims}d(2, 1)",
            f"nn.MaxPool{dims}d(3, 2, 1)",
            f"nn.MaxPool{dims}d(3, 2, 1, ceil_mode=True)",
            f"nn.MaxPool{dims}d(2, 2, dilation=2, ceil_mode=True)",
            f"nn.AvgPool{dims}d(2)",
            f"nn.AvgPool{dims}d(3, 2, 1, ceil_mode=True)",
            f"nn.AvgPool{dims}d(3, 2, 1, count_include_pad=False)",
            f"nn.AvgPool{dims}d(2, 1, ceil_mode=True, count_include_pad=False)",
            "nn.AvgPool2d(2, divisor_override=3)",
            f"nn.AdaptiveAvgPool{dims}d(1)",
            f"nn.AdaptiveAvgPool{dims}d(3)",
            f"nn.AdaptiveMaxPool{dims}d(2)",
            "nn.AdaptiveAvgPool2d((2, None))",
            f"nn.LPPool{dims}d(2, 2)",
        )
        return self.add(text.split("(")[0][3:], [f"self.{name} = {text}"], [f"x = self.{name}(x)"])

    def container(self) -> bool:
        """Add a Sequential: several modules under one name."""
        x = self.x
        dims = x.dim() - 2
        if dims not in (1, 2):
            return False
        name, c = self.name("s"), self.rng.choice(CHANNELS)
        last = self.pick(
            "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.Identity()", f"nn.MaxPool{dims}d(2)"
        )
        text = f"nn.Sequential(nn.Conv{dims}d({x.shape[1]}, {c}, 3, padding=1, bias={self.chance(0.3)}), nn.BatchNorm{dims}d({c}), {last})"
        return self.add("container", [f"self.{name} = {text}"], [f"x = self.{name}(x)"])

    def block(self) -> bool:
        """Add a layer, often with BatchNorm and activation, so that codes pass between layers."""
        kept = self.conv()
        if self.chance(0.7):
            self.norm()
        if self.chance(0.7):
            self.activation()
        return kept

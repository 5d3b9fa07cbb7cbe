"""Steps that combine, reshape and mask tensors."""

from __future__ import annotations

from campaign.programs.builder import StepBuilder

__all__ = ["TensorSteps"]


class TensorSteps(StepBuilder):
    """Values kept for later and combined, constants, other shapes, masks."""

    def keep(self) -> bool:
        name = self.name("h")
        kept = self.add("keep", [], [f"{name} = x"])
        self.variables += [name] if kept else []
        return kept

    def join(self) -> bool:
        others = [v for v in self.variables if v != "x" and v in self.env]
        if not others:
            return self.keep()
        h = self.rng.choice(others)
        form = self.pick(
            f"x = x + {h}",
            f"x = {h} + x",
            f"x += {h}",
            f"x.add_({h})",
            f"x = torch.add(x, {h})",
            f"x = torch.add(x, {h}, alpha=2)",
            f"x = torch.add(x, {h}, out=x)",
            f"torch.add(x, {h}, out=x)",
            f"x = x - {h}",
            f"x = x * {h}",
            f"x = operator.iadd(x, {h})",
            f"x = torch.cat([x, {h}], 1)",
            f"x = torch.cat(({h}, x), dim=1)",
            f"x = torch.stack([x, {h}]).sum(0)",
            f"x = x + {h}.mean((2, 3), keepdim=True)",
            f"x.copy_({h})",
            f"{h} += x",
            f"{h} = {h} + x",
            f"x = {h}",
        )
        return self.add(form.replace(h, "h"), [], [form])

    def broadcast(self) -> bool:
        x = self.x
        name = self.name("q")
        ones = ", 1" * max(0, x.dim() - 2)
        c = x.shape[1] if x.dim() > 1 else 1
        if self.chance(0.5):
            text = self.pick(
                f"torch.randn(1, {c}{ones})",
                f"torch.randn({c}{ones})",
                "torch.randn(1)",
                f"torch.randn({x.shape[-1]})",
            )
            form = self.pick(
                f"x = x + self.{name}",
                f"x = self.{name} + x",
                f"x += self.{name}",
                f"x = x * self.{name}",
            )
            return self.add(
                "parameter " + form.replace(name, "q"),
                [f"self.{name} = nn.Parameter({text})"],
                [form],
            )
        n = self.number()
        form = self.pick(
            f"x = x + {n}",
            f"x = {n} * x",
            f"x = {n} - x",
            f"x = x / {n}",
            f"x += {n}",
            f"x *= {n}",
            "x = x / x.shape[1]",
            "x = x * x.shape[-1]",
            "x = x + x",
            "x = x + x.mean(1, keepdim=True)",
            "x = x - x.mean()",
            "x = x + x.amax(-1, keepdim=True)",
            "x = x + torch.arange(x.shape[-1])",
            "x = x + torch.zeros_like(x)",
            "x = x + torch.ones(x.shape[-1])",
        )
        return self.add(form.replace(n, "n"), [], [form])

    def reshape(self) -> bool:
        x, r = self.x, self.rng
        c = x.shape[1] if x.dim() > 1 else 1
        k = r.randint(1, max(1, c - 1))
        name = self.name("s")
        g = r.choice([g for g in range(1, c + 1) if c % g == 0])
        forms = (
            f"x = x[:, :{k}]",
            f"x = x[:, {k}:]",
            "x = x[:, ::2]",
            "x = x[..., 1:]",
            "x = x[..., ::2]",
            "x = x[:, :, 1:]",
            "x = x[:, 0:1]",
            "x = x[:, [0, -1]]",
            "x = x[:, torch.arange(x.shape[1] - 1, -1, -1)]",
            "x = x.flip(1)",
            "x = x.flip(-1)",
            "x = torch.roll(x, 1, 1)",
            "x = x.transpose(-1, -2)",
            "x = x.transpose(1, -1)",
            "x = x.transpose(1, -1).contiguous()",
            "x = x.transpose(1, 2)",
            "x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
            "x = x.permute(0, 2, 3, 1)",
            "x = x.permute(0, 2, 1)",
            f"x = x.view(x.shape[0], {g}, {c // g}, *x.shape[2:]).transpose(1, 2).reshape(x.shape)",
            "x = x.view(x.size(0), -1)",
            "x = x.reshape(x.shape[0], -1)",
            "x = x.reshape(len(x), -1)",
            "x = x.view(-1, x.shape[1:].numel())",
            "x = torch.flatten(x, 1)",
            "x = x.flatten(2)",
            "x = x.flatten(-2)",
            f"x = x.reshape(x.shape[0], {c}, -1)",
            "x = x.unsqueeze(-1)",
            "x = x.unsqueeze(1)",
            "x = x.squeeze(-1)",
            "x = x.squeeze(1)",
            "x = torch.cat([x, x], 1)",
            "x = torch.cat([x, x * 0.5, x.relu()], 1)",
            "x = torch.cat([x, torch.zeros_like(x)], 1)",
            "a, b = x.chunk(2, 1); x = torch.cat([b, a], 1)",
            "a, b = x.chunk(2, 1); x = a + b",
            "a, b = torch.tensor_split(x, 2, 1); x = a",
            f"a = x.split([{k}, {c - k}], 1); x = torch.cat([a[1], a[0]], 1)",
            "x = F.pad(x, (1, 2))",
            "x = F.pad(x, (0, 0, 1, 1), value=0.5)",
            "x = F.pad(x, (1, 1), mode='replicate')",
            "x = F.pad(x, (-1, 0))",
            "x = F.pad(x, (0, 1, 0, 1), mode='constant', value=-1.0)",
            "x = F.pad(x, (0, 0, 0, 0, 1, 1))",
            "x = F.interpolate(x, scale_factor=2)",
            "x = F.interpolate(x, scale_factor=(1.3, 0.5), mode='nearest-exact')",
            "x = F.interpolate(x, scale_factor=1.7, mode='nearest', recompute_scale_factor=True)",
            "x = F.interpolate(x, size=(5, 9), mode='bilinear', align_corners=True)",
            "x = F.interpolate(x, size=7, mode='linear')",
            "x = F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:])",
            "x = F.interpolate(F.max_pool2d(x, 2), size=(x.size(2), x.size(3)), mode='bilinear')",
            "x = F.interpolate(x, size=(2, 3), mode='area')",
            "x = F.interpolate(x, size=(5, 3), mode='bicubic')",
            "x = F.interpolate(x, size=(3, 4), mode='bilinear', antialias=True)",
            "x = F.pad(x, (1, 0), value=float('-inf')).relu()",
            "x = torch.rot90(x, 1, (1, 2))",
            "x = x[:, [[0, -1], [-1, 0]]].flatten(1, 2)",
            "x = x.index_select(0, torch.tensor([0, 0]))",
            "x = x.repeat_interleave(x.flatten(0, 1).shape[0] // x.shape[0], 1)",
            "x = F.instance_norm(x)",
            "x = F.adaptive_max_pool2d(x, (2, 3))",
            "x = x.mean((2, 3))",
            "x = x.mean(-1)",
            "x = x.mean(1, keepdim=True)",
            "x = x.mean([-1, -2], keepdim=True)",
            "x = x.sum(1, keepdim=True)",
            "x = x.amax(-1)",
            "x = x.max(1, keepdim=True)[0]",
            "x = x.repeat_interleave(2, 1)",
            "x = x.expand(x.shape)",
            "x = x[None].squeeze(0)",
            "x = F.pixel_shuffle(x, 2)",
            "x = F.pixel_unshuffle(x, 2)",
            "x = F.unfold(x, 2)",
            "x = x.unflatten(1, (1, -1)).flatten(1, 2)",
            "x = x.to(memory_format=torch.channels_last)",
            "x = x.contiguous(memory_format=torch.channels_last)",
            "x = x.movedim(1, -1)",
            "x = x.T.T",
            "x = x.narrow(1, 0, 1)",
            "x = x.index_select(1, torch.tensor([0]))",
            "x = torch.einsum('bc...->bc...', x)",
            "x = x.sort(1)[0]",
            "x = x.cumsum(1)",
        )
        form = r.choice(forms)
        if self.chance(0.1):
            text = self.pick(
                "nn.Flatten()",
                "nn.Flatten(2)",
                "nn.ZeroPad2d(1)",
                "nn.ReflectionPad2d(1)",
                "nn.Upsample(scale_factor=2)",
                "nn.Upsample(scale_factor=1.5, mode='bilinear')",
                f"nn.InstanceNorm2d({c}, affine=True)",
                "nn.ConstantPad1d(1, 0.5)",
                "nn.ChannelShuffle(2)",
                "nn.Unflatten(1, (1, -1))",
            )
            return self.add(
                text.split("(")[0][3:], [f"self.{name} = {text}"], [f"x = self.{name}(x)"]
            )
        return self.add(form[:60], [], form.split("; "))

    def masks(self) -> bool:
        """Add a mask, an embedding or a choice, made of floats, sizes or constants."""
        x, name, n = self.x, self.name("m"), self.number()
        last = x.shape[-1] if x.dim() else 1
        form = self.pick(
            f"x = torch.where(x > {n}, x, x * 0.5)",
            "x = torch.where(x < x.flip(-1), x, 0.25)",
            f"x = x.masked_fill(x <= {n}, 0.5)",
            f"x = x.masked_fill((x != 0) & ~(x > {n}), -1.0)",
            f"x = x * (x >= {n})",
            f"x = x * (x == x).float() + (x > {n}).long()",
            "x = x.masked_fill(torch.arange(x.shape[-1]) > 1, 0.0)",
            f"x = x.masked_fill(torch.ones({last}, {last}, dtype=torch.bool).triu(1)[-1], 1.0)",
            "x = x + torch.arange(x.shape[-1]).flip(0) * 2",
            "x = x + torch.cumsum(torch.ones(x.shape[-1], dtype=torch.long), 0)",
            "x = x * torch.logical_xor(x > 0, torch.arange(x.shape[-1]) % 2 == 0)",
            f"x = x + self.{name}((x > {n}).long().flatten(1).cumsum(1) % 7).mean((1, 2)).sum()",
            f"x = x + self.{name}(torch.arange(x.shape[-1]))[:, 0]",
            f"x = x + self.{name}((x > {n}).int())[..., 1]",
            "x = torch.einsum('ij,kj->ik', x.flatten(1), x.flatten(1))",
            "x = torch.einsum('ijk,ilk->ijl', x, x)",
            "x = torch.baddbmm(x, x, x.transpose(1, 2) @ x, beta=0.5)",
            "x = x + torch.zeros_like(x[:1])",
            "x = torch.cat([x, x.new_ones(x.shape[0], *x.shape[1:])], 1)",
        )
        tag = form.replace(name, "m").replace(n, "n").replace(str(last), "k")
        init = [f"self.{name} = nn.Embedding({max(7, last)}, 3)"] if f"self.{name}" in form else []
        return self.add(tag[:60], init, [form])

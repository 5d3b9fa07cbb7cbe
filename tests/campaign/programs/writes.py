"""Steps that write into a tensor, or into a view of it."""

from __future__ import annotations

from campaign.programs.builder import StepBuilder

__all__ = ["WriteSteps"]


class WriteSteps(StepBuilder):
    """In-place operations of every kind."""

    def mutate(self) -> bool:
        x, r, n = self.x, self.rng, self.number()
        c = x.shape[1] if x.dim() > 1 else 1
        k = r.randint(1, max(1, c - 1))
        v = self.name("v")
        forms = (
            f"x[:, :{k}] *= {n}",
            f"x[:, :{k}] += {n}",
            f"x[:, 0] = {n}",
            "x[:, -1] = x[:, 0]",
            f"x[..., 0] = {n}",
            f"x[0] *= {n}",
            f"x[:, ::2] = {n}",
            "a, b = x.chunk(2, 1); a += b",
            "a, b = x.chunk(2, 1); a += b; x = a",
            "a, b = torch.chunk(x, 2, 1); b.relu_()",
            f"a = x.split({k}, 1)[0]; a.mul_({n})",
            f"a = torch.split(x, {k}, dim=1)[-1]; a.add_({n})",
            f"{v} = x[:, :{k}]; {v} += {n}",
            f"{v} = x[:, :{k}]; {v}.relu_()",
            f"{v} = x[:, :{k}]; F.relu({v}, inplace=True)",
            f"{v} = x[:, :{k}]; torch.relu_({v})",
            f"{v} = x; x += {n}; x = x + {v}",
            f"{v} = x; x = x + {n}; {v} *= 2; x = x + {v}",
            f"{v} = x.view(x.shape); {v}.mul_({n})",
            f"{v} = x.flatten(1); {v}.clamp_(0, 1)",
            f"{v} = x.flatten(1); x.mul_({n}); x = {v}",
            f"{v} = x.reshape(x.shape[0], -1); {v} *= {n}",
            f"x.view(-1)[::3] = {n}",
            f"x.transpose(0, 1).add_({n})",
            f"x.transpose(0, 1)[0] = {n}",
            f"x.narrow(1, 0, {k}).mul_({n})",
            f"x.select(1, 0).fill_({n})",
            f"x.unbind(1)[0].add_({n})",
            "x.diagonal().zero_()",
            f"x.squeeze().mul_({n})",
            f"x.unsqueeze(0).mul_({n})",
            f"x.detach().mul_({n})",
            f"x.data.mul_({n})",
            f"x.data[:, 0] = {n}",
            f"x.expand_as(x).mul_({n})",
            "x.copy_(x.flip(1))",
            f"x[:, :{k}].copy_(x[:, -{k}:])",
            f"x.fill_({n})",
            f"x.mul_({n})",
            "x.neg_()",
            "x.clamp_(0, 1)",
            "x.clamp_(min=0.0)",
            "x.relu_()",
            "F.relu_(x)",
            "F.hardtanh_(x, -0.5, 0.5)",
            "F.leaky_relu_(x, 0.2)",
            "F.elu_(x)",
            "torch.relu_(x)",
            f"torch.add(x, {n}, out=x)",
            f"torch.mul(x, {n}, out=x)",
            "torch.clamp(x, 0, 1, out=x)",
            f"torch.mul(x[:, :{k}], {n}, out=x[:, :{k}])",
            f"{v} = torch.empty_like(x); torch.add(x, {n}, out={v}); x = {v}",
            "torch.abs(x, out=x)",
            f"x.index_put_((torch.tensor([0]),), torch.tensor({n}))",
            f"x.index_fill_(1, torch.tensor([0]), {n})",
            "x.index_add_(1, torch.tensor([0]), x[:, :1])",
            "x.index_copy_(1, torch.tensor([0]), x[:, -1:].clone())",
            f"x.masked_fill_(x > 0.5, {n})",
            f"x[x > 0.5] = {n}",
            "x.lerp_(torch.ones_like(x), 0.5)",
            "x.addcmul_(x, x)",
            f"x.scatter_(1, torch.zeros_like(x, dtype=torch.long)[:, :1], {n})",
            f"x.put_(torch.tensor([0]), torch.tensor([{n}]))",
            "x.requires_grad_(False)",
            f"x.set_(x * {n})",
            f"x.resize_(x.shape).mul_({n})",
            f"x.as_strided(x.shape, x.stride()).mul_({n})",
            f"x.swapaxes(0, 1).add_({n})",
            f"x.movedim(1, -1).mul_({n})",
            f"x.permute(*range(x.dim())).mul_({n})",
            f"x.T.mul_({n})",
            f"x.numpy()[:] *= {n}",
            f"x.__setitem__(0, {n})",
            f"operator.setitem(x, 0, {n})",
            f"operator.imul(x, {n})",
            f"operator.imul(x[:, :{k}], {n})",
            f"torch._foreach_mul_([x], {n})",
            f"nn.init.constant_(x, {n})",
            f"torch.ops.aten.mul_.Scalar(x, {n})",
            f"torch.ops.aten.relu_(x[:, :{k}])",
            f"torch.fill_(x[:, :{k}], {n})",
            "x.bernoulli_(1.0)",
            f"x = x.add_({n}).mul_(2)",
            f"x[:, :{k}].add_(1)[:, 0].mul_({n})",
            f"x = F.pad(x, (1, 1)); x[..., 0] = {n}",
            "F.dropout(x, 0.5, self.training, inplace=True)",
            f"F.batch_norm(x, torch.zeros({c}), torch.ones({c}), out=x)",
            "x.unfold(-1, 2, 1).mul_(1.5)",
            "torch.nn.functional.threshold_(x, 0.1, 0.0)",
            "x.sub_(x.mean())",
            "x.sigmoid_()",
            "x.div_(x.shape[1])",
            "x.view(torch.int32).bitwise_and_(-65536)",
            f"x.apply_(lambda t: t * {n})",
            "x.map_(x, lambda a, b: a + b)",
        )
        form = r.choice(forms)
        lines = form.split("; ")
        extra_tag = ""
        if self.chance(0.15):
            name = self.name("r")
            view = self.pick(f"x[:, :{k}]", "x", "x.flatten(1)", "x.transpose(0, 1)")
            return self.add(
                f"inplace module on {view.replace(str(k), 'k')}",
                [
                    f"self.{name} = {self.pick('nn.ReLU(inplace=True)', 'nn.Hardtanh(-0.5, 0.5, inplace=True)', 'nn.ELU(inplace=True)')}"
                ],
                [f"self.{name}({view})"],
            )
        tag = form.replace(n, "n").replace(v, "v").replace(f":{k}", ":k").replace(f"({k},", "(k,")
        return self.add(tag + extra_tag, [], lines)

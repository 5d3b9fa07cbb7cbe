"""The optimizer of a phase: parameter groups with their own learning rates, and update rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fatnn_rs.contained import named_modules
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.quant.values import Int8Value
from fatnn_rs.train.sections import Phase

__all__ = ["MatrixMomentum", "build_optimizer", "orthogonalize"]

#: Values of ``Phase.optimizer`` that transform the updates of weights.
RULES = ("muon", "normalized-sgd")

#: Quantizers, steps and scales of quantized layers and int8 values.
_STEPS = ("act_quant", "weight_quant", "scale", "ternary_scale", "log2_step")

#: Coefficients of the quintic Newton-Schulz iteration that Muon uses.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """Bring all singular values of a matrix close to 1, by Newton-Schulz iterations.

    Parameters
    ----------
    matrix
        Float [rows, columns].
    steps
        Number of iterations.

    Returns
    -------
    Tensor
        A matrix of the same shape and dtype.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _unit_filters(matrix: Tensor) -> Tensor:
    """Divide every row by its norm."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    return matrix / norms.clamp(min=1e-7)


class MatrixMomentum(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose groups may transform the update of weights.

    ``torch.optim.Muon`` takes only matrices and only one rule for all its parameters. Here a weight
    [out, ...] counts as a matrix [out, rest], and other parameters train in the same optimizer, so
    that one learning rate schedule and one state cover the model.

    Parameters
    ----------
    groups
        Parameter groups with ``lr``, ``momentum``, ``weight_decay`` and ``rule``. Rules:

        ``"sgd"``
            The Nesterov update; weight decay is part of the gradient, as in ``torch.optim.SGD``.
        ``"muon"``
            The update is orthogonalised (K. Jordan, "Muon: An optimizer for hidden layers in neural
            networks", 2024). Weight decay is decoupled.
        ``"normalized-sgd"``
            The update of every filter has norm 1. Weight decay is decoupled.

        With ``renormalize``, a weight [out, ...] is first scaled to the norm ``sqrt(out)``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        defaults = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
        super().__init__(groups, {**defaults, "rule": "sgd", "renormalize": False, "steps": 3})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, rule = parameter.grad, group["rule"]
        assert gradient is not None
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        if decay and rule == "sgd":
            gradient = gradient.add(parameter, alpha=decay)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        update = gradient.add(buffer, alpha=momentum)
        if group["renormalize"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-7))
        if rule != "sgd":
            if decay:
                parameter.mul_(1.0 - lr * decay)
            matrix = update.reshape(len(update), -1)
            turned = (
                orthogonalize(matrix, group["steps"]) if rule == "muon" else _unit_filters(matrix)
            )
            update = turned.view(update.shape)
        parameter.add_(update, alpha=-lr)


def build_optimizer(phase: Phase, model: nn.Module) -> torch.optim.Optimizer:
    """Return a phase's optimizer for the parameters of ``model`` that need a gradient.

    Groups are: weights (two dimensions or more), the last layer's weight, quantizers' steps and
    scales, and the rest (biases and BatchNorm's parameters). Only weights decay, unless
    ``phase.decay_all``. Muon and normalised SGD apply to weights except the last layer's, as
    Muon's author recommends; the rest then uses SGD.
    """
    groups = _groups(phase, model)
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    if phase.optimizer == "sgd" and not phase.renormalize:
        return torch.optim.SGD(groups, momentum=phase.momentum, nesterov=phase.momentum > 0)
    matrix = {
        "rule": phase.optimizer,
        "momentum": phase.momentum,
        "renormalize": phase.renormalize,
    }
    momentum = phase.momentum if phase.momentum_others is None else phase.momentum_others
    other = {"rule": "sgd", "momentum": momentum}
    return MatrixMomentum(
        {**group, **(matrix if group["name"] == "weights" else other)} for group in groups
    )


def _last_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the last layer: of the last one called in an fx graph, or defined."""
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dim() > 1
    }
    if not found:
        return []
    last = list(found)[-1]
    if isinstance(model, fx.GraphModule):  # it defines modules in another order
        called = [str(n.target) for n in model.graph.nodes if n.op in ("call_module", "get_attr")]
        within = ([n for n in found if f"{n}.".startswith(f"{target}.")] for target in called[::-1])
        last = next(filter(None, within), [last])[-1]
    # Some quantizers have a second weight.
    layers = [f"{n}." for n, m in named_modules(model) if n and isinstance(m, QuantizedLayer)]
    path = next((n for n in layers if last.startswith(n)), last.rpartition(".")[0] + ".")
    return [parameter for name, parameter in found.items() if name.startswith(path)] or [
        found[last]
    ]


def _groups(phase: Phase, model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups that have parameters, each with its name, learning rate and decay."""
    steps = {
        id(parameter)
        for _, layer in named_modules(model)
        if isinstance(layer, (QuantizedLayer, Int8Value))
        for name, parameter in layer.named_parameters()
        if name.partition(".")[0] in _STEPS
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    separate = phase.lr_last or phase.renormalize or phase.optimizer in RULES
    last = _last_weights(model) if separate else []
    ids = {id(parameter) for parameter in last}
    weights = [p for p in parameters if p.dim() > 1 and id(p) not in ids]
    plain = [parameter for parameter in parameters if parameter.dim() <= 1]
    decay = phase.weight_decay
    named = (
        ("weights", weights, phase.lr, decay),
        ("last", last, phase.lr_last, decay),
        ("steps", [p for p in plain if id(p) in steps], phase.lr_steps, 0.0),
        ("biases", [p for p in plain if id(p) not in steps], phase.lr_biases, 0.0),
    )
    return [
        {
            "name": name,
            "params": params,
            "lr": lr or phase.lr,
            "weight_decay": decay if phase.decay_all else own_decay,
        }
        for name, params, lr, own_decay in named
        if params
    ]

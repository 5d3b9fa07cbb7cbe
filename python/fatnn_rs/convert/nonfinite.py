"""Where the model itself makes NaN or infinity on the example, for messages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.contained import named_modules
from fatnn_rs.convert.capture import copies
from fatnn_rs.convert.structure import leaves, plain
from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.replica import replica

__all__ = ["origin_of_nan"]

_DIVERGED = (
    "if training diverged, load an earlier checkpoint and train with a smaller learning rate; "
    "otherwise check the data"
)


def origin_of_nan(model: nn.Module, arguments: tuple[Any, ...]) -> str:
    """Run the model and say which of its modules gives NaN or infinity first.

    Parameters
    ----------
    model
        In eval mode. It is not changed.
    arguments
        Its positional arguments.

    Returns
    -------
    str
        A sentence with the way out, or "" if the model gives none.
    """
    if not _all_finite(arguments):
        return "the example inputs hold NaN or infinity: give real data"
    found: list[str] = []
    made = replica(model)

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if found or _all_finite(output):
                return
            if not _all_finite((args, kwargs)):
                found.append(
                    "so does the model in torch: an operation before its module "
                    f"{name!r} gives NaN or infinity; {_DIVERGED}"
                )
                return
            own = [value for value in module.parameters() if value.numel()]
            weights = f", its parameters {_max_abs(own):.3g}" if own else ""
            found.append(
                f"so does the model in torch: its module {name!r} ({type(module).__name__}) is the "
                f"first to give NaN or infinity (its inputs reach {_max_abs((args, kwargs)):.3g}"
                f"{weights}); {_DIVERGED}"
            )

        return hook

    modules = dict(named_modules(made))
    quantized = tuple(f"{n}." for n, m in modules.items() if isinstance(m, QuantizedLayer))
    for name, module in modules.items():
        whole = isinstance(module, QuantizedLayer) or not any(True for _ in module.children())
        if name and whole and not name.startswith(quantized):
            module.register_forward_hook(hook_for(name), with_kwargs=True)
    try:
        with torch.no_grad():
            result = made(*copies(arguments))
    except Exception:  # a quantizer of the model may refuse NaN, too
        return found[0] if found else ""
    if found:
        return found[0]
    return "" if _all_finite(result) else f"so does the model in torch; {_DIVERGED}"


def _tensors(value: Any) -> list[Tensor]:
    return [
        leaf
        for leaf in leaves(plain(value))
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()
    ]


def _all_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in _tensors(value))


def _max_abs(value: Any) -> float:
    return max((float(one.abs().max()) for one in _tensors(value)), default=0.0)

"""Watch a model run: which quantized layers it calls, and which weights it uses without a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fatnn_rs.nn.base import QuantizedLayer

__all__ = ["Observed", "function_name", "observe", "reads_values", "tensors_in"]

#: Tensor attributes that give access to its values; the others are metadata.
_VALUES = ("T", "H", "mT", "mH", "data", "real", "imag")

#: Methods that read only metadata: models ask a layer's weight for its size or dtype.
# fmt: off
_METADATA = frozenset(
    {
        "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset",
        "element_size", "is_contiguous", "is_floating_point", "is_complex", "is_inference",
        "is_signed", "is_conj", "is_neg", "get_device", "data_ptr", "untyped_storage", "type",
        "type_as", "requires_grad_", "register_hook", "__len__", "__hash__", "__repr__",
        "__format__", "__reduce_ex__", "__deepcopy__", "__set__", "__delete__", "is_tensor"
    }
)
# fmt: on


@dataclass
class Observed:
    """What happened in the runs of a model.

    Attributes
    ----------
    called
        Names of the layers that were called.
    used
        Name of a layer → name of the function that read its weight outside of the layer's
        forward.
    """

    called: set[str] = field(default_factory=set)
    used: dict[str, str] = field(default_factory=dict)

    def problems(self, layers: Mapping[str, QuantizedLayer]) -> dict[str, str]:
        """Return layer → why it computes in float, or why it does not run at all."""
        found: dict[str, str] = {}
        for name in layers:
            use = self.used.get(name)
            if use is not None:
                how = "" if name in self.called else "never called in eval mode; "
                found[name] = f"{how}{use} uses its float weight outside of the layer"
            elif name not in self.called:
                found[name] = "never called in eval mode"
        return found


@contextmanager
def observe(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> Iterator[Observed]:
    """Record calls of layers and uses of their weights while the context is open."""
    observed = Observed()
    inside = 0
    weights: dict[int, list[str]] = {}
    # A weight that a hook or parametrization computes may be freed during the run, and another
    # tensor may then get its `id`. This list keeps such weights alive.
    watched_weights: list[Tensor] = []
    # A torch layer (an embedding, for example) may share the parameter; its uses do not count.
    torchs = [m for m in model.modules() if type(m).__module__.startswith("torch.nn.")]
    others = {id(parameter) for module in torchs for parameter in module._parameters.values()}
    for name, layer in layers.items():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and id(weight) not in others:
            watched_weights.append(weight)
            weights.setdefault(id(weight), []).append(name)

    def enter(layer: nn.Module, args: Any) -> None:
        nonlocal inside
        inside += 1
        observed.called.update(name for name, one in layers.items() if one is layer)

    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        nonlocal inside
        inside -= 1

    def run_of(layer: QuantizedLayer) -> Any:
        run = layer._run

        def watched(*args: Any) -> Tensor:
            enter(layer, args)
            try:
                return run(*args)
            finally:
                leave(layer, args, None)

        return watched

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if not inside and reads_values(func):
                for tensor in tensors_in((args, kwargs)):
                    for name in weights.get(id(tensor), ()):
                        observed.used.setdefault(name, function_name(func))
            return func(*args, **(kwargs or {}))

    handles: list[Any] = []
    try:
        for layer in set(layers.values()):
            # Hooks do not see a direct call of `forward`, but `_run` does.
            vars(layer)["_run"] = run_of(layer)
            handles.append(layer.register_forward_pre_hook(enter, prepend=True))
            handles.append(layer.register_forward_hook(leave, always_call=True))
        with Watch():
            yield observed
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            vars(layer).pop("_run", None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)


def reads_values(function: Any) -> bool:
    """Whether a torch function reads a tensor's values and not only its metadata."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", "") in _VALUES
    return name not in _METADATA


def function_name(function: Any) -> str:
    """Return the name of a torch function for messages."""
    name = getattr(function, "__name__", "") or "a function"
    return f"Tensor.{function.__self__.__name__}" if name == "__get__" else str(name)

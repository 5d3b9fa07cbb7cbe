"""Record the state of a model before running it, and restore it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Snapshot"]

_STORES = ("_parameters", "_buffers", "_modules")


class Snapshot:
    """Record of the attributes, children and buffers of every module of a model.

    Parameters
    ----------
    model
        The model. The record includes the values of all its buffers.
    tensors
        More tensors whose values to record.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[Tensor] = ()) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                for held in (vars(module), *(vars(module)[store] for store in _STORES)):
                    self._attributes.append((held, dict(held)))
        kept = {id(tensor): tensor for tensor in (*model.buffers(), *tensors) if not tensor.is_meta}
        self._values = [(tensor, tensor.detach().clone()) for tensor in kept.values()]

    @torch.no_grad()
    def restore(self) -> None:
        """Undo all changes since the record was made."""
        for held, before in self._attributes:
            if len(held) != len(before) or any(
                held.get(key, self) is not value for key, value in before.items()
            ):
                held.clear()
                held.update(before)
        for tensor, value in self._values:
            if not torch.equal(tensor, value):
                tensor.copy_(value)

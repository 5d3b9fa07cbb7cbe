"""A module that refuses training, state dicts, and other devices and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fatnn_rs.errors import UnsupportedError

__all__ = ["InferenceModule"]

Self = TypeVar("Self", bound="InferenceModule")


class InferenceModule(nn.Module):
    """Base of modules for inference in float32 and int8 on the CPU, without parameters."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there are no parameters, so a saved state dict would lose the network.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            "a converted network has no state dict, and saving one would lose the network; write "
            "it with fatnn_rs.save(net, path), or keep the state dict of the model that it was "
            "converted from"
        )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there are no parameters to load.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            "a converted network takes no state dict; read a saved network with "
            "fatnn_rs.load(path), or load the state dict into the prepared model and convert that"
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.load_state_dict()

    def __prepare_scriptable__(self) -> Any:
        raise UnsupportedError(
            "torch.jit.script cannot compile a converted network; torch.compile takes it, and "
            "fatnn_rs.save writes it to a file that runs without Python"
        )

    def train(self: Self, mode: bool = True) -> Self:
        """Refuse training; ``eval()`` is fine.

        Raises
        ------
        UnsupportedError
            For ``mode=True``.
        """
        if mode is not False:
            raise UnsupportedError(
                "a converted network is for inference only; train the model it was converted from, "
                "then convert again"
            )
        return self

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse other devices and dtypes (``.to``, ``.half``, ``.cuda``).

        Raises
        ------
        UnsupportedError
            If ``fn`` would move float32 tensors off the CPU or change their dtype.
        """
        sample = fn(torch.zeros(1, device="cpu"))
        if sample.device.type != "cpu" or sample.dtype != torch.float32:
            raise UnsupportedError(
                "a converted network runs in float32 and int8 on the CPU, so it cannot become "
                f"{sample.dtype} on {sample.device}; move and cast the tensors around it instead"
            )
        return self

"""Detect an optimizer that was made before ``prepare`` and does not know the quantizers' steps."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from fatnn_rs.errors import PrepareWarning

__all__ = ["StepsWatch"]


class StepsWatch:
    """Compares tensor versions between training forwards. All layers of a model share one.

    The watch ends with the first optimizer step that it detects. It cannot detect a step if
    ``model.zero_grad()`` has cleared the gradients of the quantizers' steps.
    """

    def __init__(self) -> None:
        self.done = False

    def check(self, layer: Any, weight: Tensor | None) -> None:
        """Check a layer at the end of a forward in training mode.

        Warns
        -----
        PrepareWarning
            If the weight has changed since the last forward, but steps with a gradient have not.
        """
        steps = [step for step in layer.act_quant.parameters() if step.requires_grad]
        if weight is None or not steps:
            return
        before = vars(layer).get("_seen_versions")
        now = weight._version, sum(step._version for step in steps)
        vars(layer)["_seen_versions"] = now
        if before is None or now[0] == before[0]:
            return
        if now[1] != before[1]:
            self.done = True
        elif any(step.grad is not None for step in steps):
            self.done = True
            warnings.warn(
                f"layer {layer.layer_name!r}: the optimizer changed its weight, but not the steps "
                "of its quantizer. An optimizer that was made before prepare does not know them; "
                "make it afterwards: SGD(fatnn_rs.param_groups(model, weight_decay=...), ...)",
                PrepareWarning,
                stacklevel=2,
            )

"""Notice an optimizer that misses the quantizers' steps: it was made before ``prepare``."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from fatnn_rs.errors import PrepareWarning

__all__ = ["StepsWatch"]


class StepsWatch:
    """Compares versions of tensors between training forwards; one for all layers of a model.

    It ends with the first optimizer step that it has seen. It sees none where gradients of steps
    were cleared by ``model.zero_grad()``.
    """

    def __init__(self) -> None:
        self.done = False

    def look(self, layer: Any, weight: Tensor | None) -> None:
        """Look at a layer at the end of a forward in training mode.

        Warns
        -----
        PrepareWarning
            The weight has changed since the last forward, and steps with a gradient have not.
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
                "of its quantizer. An optimizer that was made before prepare does not know them; make "
                "it afterwards: SGD(fatnn_rs.param_groups(model, weight_decay=...), ...)",
                PrepareWarning,
                stacklevel=2,
            )

"""The rows of a comparison: the quantizer families, and FATNN's recipe with one change each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ABLATIONS", "ALL_ROWS", "GROUPS", "OPTIONS", "ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One row of the comparison.

    Attributes
    ----------
    title
        Name in the table.
    settings
        Changes of the recipe.
    weight_bits, act_bits
        Bits per stored weight and activation.
    cost
        Passes over N bits that an inner product of N values takes: 2 if both are ternary.
    from_float
        Whether it starts from its seed's float network.
    """

    title: str
    settings: tuple[str, ...]
    weight_bits: str
    act_bits: str
    cost: str
    from_float: bool = True


def _row(title: str, weight: str, act: str, bits: tuple[str, str], cost: str) -> Row:
    return Row(title, (f"quantize.weight={weight}", f"quantize.act={act}"), *bits, cost)


#: Name → row. The row ``float`` is always added.
ROWS: dict[str, Row] = {
    "fatnn": _row("FATNN", "fatnn", "ternary", ("ternary", "ternary"), "2N"),
    "lsq": _row("LSQ, ternary", "lsq", "ternary", ("ternary", "ternary"), "2N"),
    "sttn": _row("STTN", "sttn", "ternary", ("ternary", "ternary"), "2N"),
    "twn": _row("TWN weights", "twn", "ternary", ("ternary", "ternary"), "2N"),
    "fatnn-uint2": _row("FATNN, uint2 activations", "fatnn", "uint2", ("ternary", "2 bits"), "2N"),
    "dorefa": _row("DoReFa 2/2", "dorefa", "uint2", ("2 bits", "2 bits"), "4N"),
    "binary": _row("binary", "binary", "binary", ("binary", "binary"), "N"),
}


def _ablation(title: str, *settings: str, from_float: bool = True) -> Row:
    return Row(title, settings, "ternary", "ternary", "2N", from_float)


#: Name → FATNN's row with one change (``--rows ablations``). Runs are shared with ``fatnn``.
ABLATIONS: dict[str, Row] = {
    "no-distill": _ablation("no distillation", "ternary.distill=0"),
    "scratch": _ablation(
        "from scratch (no distillation)", "float=null", "ternary.distill=0", from_float=False
    ),
    "constant": _ablation("constant learning rate", "ternary.schedule=constant"),
    "decay-all": _ablation("weight decay on steps and BatchNorm", "ternary.decay_all=true"),
    "calibrate-1": _ablation("steps from one image", "quantize.calibration_images=1"),
    "int8-values": _ablation("int8 values between layers", "quantize.values=int8"),
    "per-channel": _ablation(
        "weight steps per channel", 'quantize.overrides={"re:.*": {per_channel: true}}'
    ),
}

#: Name → FATNN's row with one other option (``--rows options``), for recipes that train with AdamW.
#: Choose with ``--set holdout=5000``, so that the test images do not decide.
OPTIONS: dict[str, Row] = {
    "batch-half": _ablation("batches of 250", "ternary.batch_size=250"),
    "batch-quarter": _ablation("batches of 125", "ternary.batch_size=125"),
    "lr-double": _ablation("learning rate 0.002", "ternary.lr=0.002"),
    "steps-fast": _ablation("learning rate of steps 0.005", "ternary.lr_steps=0.005"),
    "distill": _ablation(
        "distillation, half of the loss", "ternary.distill=0.5", "ternary.temperature=2"
    ),
    "distill-early": _ablation(
        "distillation in epochs 1 and 2",
        "ternary.distill=0.5",
        "ternary.temperature=2",
        "ternary.distill_epochs=[0, 2]",
    ),
    "distill-late": _ablation(
        "distillation in epoch 3",
        "ternary.distill=0.5",
        "ternary.temperature=2",
        "ternary.distill_epochs=[2, 3]",
    ),
    "smoothing-0": _ablation("no label smoothing", "ternary.label_smoothing=0"),
    "normalized-sgd": _ablation(
        "normalised SGD",
        "ternary.optimizer=normalized-sgd",
        "ternary.lr=0.03",
        "ternary.lr_biases=0.01",
        "ternary.lr_last=0.05",
        "ternary.lr_steps=0.003",
    ),
    "freeze": _ablation("codes frozen in the last epoch", "ternary.freeze_epochs=1"),
    "full-range": _ablation(
        "activations -1, 0, 1", 'quantize.overrides={"re:.*": {act_range: full}}'
    ),
}

#: Name of a group (``--rows NAME``) → its rows.
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(ROWS),
    "ablations": ("fatnn", *ABLATIONS),
    "options": ("fatnn", *OPTIONS, "lsq", "per-channel", "fatnn-uint2"),
}

ALL_ROWS: dict[str, Row] = {**ROWS, **ABLATIONS, **OPTIONS}

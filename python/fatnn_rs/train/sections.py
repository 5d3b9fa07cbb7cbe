"""The sections of a recipe: augmentation, phases, quantization, monitoring."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fatnn_rs.config import TernaryConfig

__all__ = ["Augment", "Monitor", "Phase", "Quantize", "Section"]


class Section(BaseModel):
    """Options by name. Others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` and ``false`` for numbers, which pydantic takes as 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        given = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(item, (bool, np.bool_)) for item in given) and _is_number(kind):
            raise ValueError("expected a number")
        return value


def _is_number(kind: Any) -> bool:
    """Whether an annotation is a number, perhaps optional or in a tuple, and no bool."""
    if get_origin(kind) is dict:
        return False
    kinds = get_args(kind) or (kind,)
    return bool not in kinds and any(
        item in (int, float) or (get_origin(item) is tuple and _is_number(item)) for item in kinds
    )


class Augment(Section):
    """Augmentation of training images, random per image.

    Attributes
    ----------
    crop
        Pixels of padding, after which a window of the old size is cropped at random.
    pad
        Padding for ``crop``: ``"zero"`` or ``"reflect"``.
    flip
        Whether images are mirrored horizontally with probability 1/2. ``"alternating"``: half of
        the images are mirrored in even epochs, the other half in odd ones, so that two epochs show
        every image in both ways.
    cutout
        Side of a square of zeros at a random position; 0: none.
    """

    crop: int = Field(default=0, ge=0)
    pad: Literal["zero", "reflect"] = "zero"
    flip: bool | Literal["alternating"] = False
    cutout: int = Field(default=0, ge=0)


class Phase(Section):
    """One phase of training.

    Attributes
    ----------
    epochs
        Passes over the training images.
    batch_size
        Images per iteration, over all processes together; None: the recipe's.
    optimizer
        ``"sgd"`` (Nesterov momentum), ``"adamw"``, ``"muon"`` or ``"normalized-sgd"``. The last two
        transform the updates of weights (:class:`fatnn_rs.train.optimizer.MatrixMomentum`) and use
        SGD for all other parameters and for the last layer.
    lr
        Learning rate after warm-up.
    lr_biases, lr_steps, lr_last
        Learning rates of biases and BatchNorm, of quantizers' steps and scales, and of the last
        layer's weight; None: ``lr``. The schedule applies to all of them.
    momentum
        Momentum of SGD, Muon and normalised SGD.
    momentum_others
        Momentum of the parameters that Muon and normalised SGD leave to SGD; None: ``momentum``.
    renormalize
        Scale every weight ``[out, ...]`` except the last layer's to the norm ``sqrt(out)`` in every
        iteration. Not with ``"adamw"``.
    weight_decay
        Weight decay of weights; steps, scales, biases and BatchNorm have none
        (:func:`fatnn_rs.param_groups`).
    decay_all
        Apply weight decay to all parameters, for comparison.
    schedule
        ``"cosine"`` or ``"linear"`` (to zero), ``"step"`` (times ``gamma`` at each of
        ``milestones``, in epochs) or ``"constant"``.
    warmup_epochs
        Epochs in which the learning rate rises linearly.
    label_smoothing
        As in ``torch.nn.functional.cross_entropy``.
    distill
        Weight of the distillation loss (divergence from the float model's outputs) in the total
        loss. Ternary phase only.
    distill_epochs
        ``(start, stop)``: distillation only in the epochs ``start`` to ``stop - 1``, counted from
        0, and the plain loss in the others; None: in all of them.
    temperature
        Temperature of the distillation.
    clip
        Maximum norm of the gradient; None: no limit.
    norm_images
        Number of training images from which BatchNorm's statistics are computed anew after the last
        epoch; 0: keep the running statistics.
    freeze_epochs
        In so many of the last epochs, the weights of ternary layers and the parameters of their
        quantizers stay as they are, so that no code flips. Ternary phase only.
    """

    epochs: int = Field(ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    optimizer: Literal["sgd", "adamw", "muon", "normalized-sgd"] = "sgd"
    lr: float = Field(gt=0)
    lr_biases: float | None = Field(default=None, gt=0)
    lr_steps: float | None = Field(default=None, gt=0)
    lr_last: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    momentum_others: float | None = Field(default=None, ge=0, lt=1)
    renormalize: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    decay_all: bool = False
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = Field(default=0.1, gt=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    distill: float = Field(default=0.0, ge=0, le=1)
    distill_epochs: tuple[int, int] | None = None
    temperature: float = Field(default=1.0, gt=0)
    clip: float | None = Field(default=None, gt=0)
    norm_images: int = Field(default=0, ge=0)
    freeze_epochs: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Phase:
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                "schedule 'step' needs milestones, and other schedules take none, got "
                f"{self.schedule!r} with {self.milestones}"
            )
        if not all(0 < place < math.inf for place in self.milestones):
            raise ValueError(f"milestones must be finite and above 0, got {list(self.milestones)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs, got {self.warmup_epochs:g} of "
                f"{self.epochs}"
            )
        if self.freeze_epochs >= self.epochs:
            raise ValueError(
                f"freeze_epochs must be less than epochs, got {self.freeze_epochs} of {self.epochs}"
            )
        if self.distill_epochs is not None:
            self._check_distill_epochs(*self.distill_epochs)
        transforms = self.renormalize or self.optimizer in ("muon", "normalized-sgd")
        if self.momentum_others is not None and not transforms:
            raise ValueError(
                "momentum_others is for 'muon', 'normalized-sgd' and renormalize, got optimizer "
                f"{self.optimizer!r}; use momentum"
            )
        if self.renormalize and self.optimizer == "adamw":
            raise ValueError(
                "renormalize is for 'sgd', 'muon' and 'normalized-sgd', got optimizer 'adamw'; set "
                "renormalize=false"
            )
        return self

    def _check_distill_epochs(self, start: int, stop: int) -> None:
        if not self.distill:
            raise ValueError(
                f"distill_epochs is [{start}, {stop}], but distill is 0; set distill, or leave out "
                "distill_epochs"
            )
        if not 0 <= start < stop <= self.epochs:
            raise ValueError(
                "distill_epochs must be [start, stop] with 0 <= start < stop <= epochs, got "
                f"[{start}, {stop}] of {self.epochs}"
            )

    def distills(self, epoch: int) -> bool:
        """Whether the loss of an epoch, counted from 0, has a part from the float model."""
        start, stop = self.distill_epochs or (0, self.epochs)
        return self.distill > 0 and start <= epoch < stop


class Quantize(Section):
    """Quantization: the fields of :class:`fatnn_rs.TernaryConfig`, and the calibration.

    Attributes
    ----------
    calibration_images
        Number of training images that initialise the activation steps and BatchNorm's statistics
        before training.
    """

    weight: str = "fatnn"
    act: str = "ternary"
    act_quantizer: str | None = None
    first: str = "float"
    last: str = "float"
    depthwise: str = "int8"
    values: str = "float32"
    skip: tuple[str, ...] = ()
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    calibration_images: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Quantize:
        self.config()
        return self

    def config(self) -> TernaryConfig:
        """Return the configuration for :func:`fatnn_rs.prepare`."""
        return TernaryConfig(**self.model_dump(exclude={"calibration_images"}))


class Monitor(Section):
    """Options of :mod:`fatnn_rs.train.monitor`.

    Attributes
    ----------
    images
        Number of test images it reads after every epoch.
    dead
        Fraction of zeros among a layer's weight or activation codes from which it warns.
    """

    images: int = Field(default=256, ge=1)
    dead: float = Field(default=0.98, gt=0, le=1)

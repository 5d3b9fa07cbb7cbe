"""The layers and networks of the ladder, in the tables :data:`SHAPES` and :data:`NETWORKS`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NETWORKS", "SHAPES", "LadderNetwork", "LayerShape"]


@dataclass(frozen=True)
class LayerShape:
    """A convolution with stride 1 and same padding on a square image, or a linear layer.

    Attributes
    ----------
    title
        Name in tables.
    channels, out_channels
        Number of input and output channels.
    size
        Height and width of the image; 1 for a linear layer.
    window
        Height and width of the kernel.
    linear
        Whether it is a linear layer.
    batches
        Batch sizes to measure; empty: those of the options.
    """

    title: str
    channels: int
    out_channels: int
    size: int = 1
    window: int = 1
    linear: bool = False
    batches: tuple[int, ...] = ()

    def macs(self, batch: int) -> int:
        """Multiply-accumulates of one call."""
        return batch * self.size**2 * self.channels * self.out_channels * self.window**2


def _square(channels: int, size: int) -> LayerShape:
    return LayerShape(f"3×3, {channels} channels, {size}×{size}", channels, channels, size, 3)


def _pointwise(channels: int, out_channels: int, size: int) -> LayerShape:
    return LayerShape(
        f"1×1, {channels} → {out_channels} channels, {size}×{size}", channels, out_channels, size
    )


#: Name → layer. ``benches/instructions.rs`` uses the same names.
SHAPES: dict[str, LayerShape] = {
    "3x3-64-56": _square(64, 56),
    "3x3-128-28": _square(128, 28),
    "3x3-256-14": _square(256, 14),
    "3x3-512-7": _square(512, 7),
    "1x1-64-256-56": _pointwise(64, 256, 56),
    "1x1-2048-512-7": _pointwise(2048, 512, 7),
    "fc-4096": LayerShape("linear, 4096 → 4096", 4096, 4096, linear=True, batches=(1, 16)),
}


@dataclass(frozen=True)
class LadderNetwork:
    """A network of :data:`fatnn_rs.bench.networks.NETWORKS`.

    Attributes
    ----------
    ends
        Type of its first and last layer on rungs of codes: ``"int8"``, or ``"float"`` as in a
        recipe.
    accuracies
        Results of ``benches/quantizers`` for this network, as a file name without suffix; empty if
        there are none.
    """

    ends: str = "int8"
    accuracies: str = ""


#: Name in :data:`fatnn_rs.bench.networks.NETWORKS` → how it is measured.
NETWORKS: dict[str, LadderNetwork] = {
    "resnet18": LadderNetwork(),
    "resnet34": LadderNetwork(),
    "resnet50": LadderNetwork(),
    "vgg16_bn": LadderNetwork(),
    "cifar-resnet20": LadderNetwork(),
    "cifar-resnet20-conv": LadderNetwork("float", "cifar10-resnet20"),
    "small-cnn": LadderNetwork("float", "fashion-mnist"),
}

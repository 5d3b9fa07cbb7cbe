"""The layers and networks of the ladder. One row each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NETWORKS", "SHAPES", "Net", "Shape"]


@dataclass(frozen=True)
class Shape:
    """A convolution of stride 1 on a square map, padded so that the map keeps its size, or a linear layer.

    Attributes
    ----------
    title
        In tables.
    channels, out_channels
        Of one pixel.
    size
        Height and width of the map; 1 for a linear layer.
    window
        Height and width of the kernel.
    linear
        Whether it is a linear layer.
    batches
        Numbers of images it is measured with; empty: those asked for.
    """

    title: str
    channels: int
    out_channels: int
    size: int = 1
    window: int = 1
    linear: bool = False
    batches: tuple[int, ...] = ()

    def macs(self, batch: int) -> int:
        """Multiply-accumulates."""
        return batch * self.size**2 * self.channels * self.out_channels * self.window**2


def _square(channels: int, size: int) -> Shape:
    return Shape(f"3×3, {channels} channels, {size}×{size}", channels, channels, size, 3)


def _pointwise(channels: int, out_channels: int, size: int) -> Shape:
    return Shape(
        f"1×1, {channels} → {out_channels} channels, {size}×{size}", channels, out_channels, size
    )


#: Name → layer. ``benches/instructions.rs`` counts instructions for those it has by the same name.
SHAPES: dict[str, Shape] = {
    "3x3-64-56": _square(64, 56),
    "3x3-128-28": _square(128, 28),
    "3x3-256-14": _square(256, 14),
    "3x3-512-7": _square(512, 7),
    "1x1-64-256-56": _pointwise(64, 256, 56),
    "1x1-2048-512-7": _pointwise(2048, 512, 7),
    "fc-4096": Shape("linear, 4096 → 4096", 4096, 4096, linear=True, batches=(1, 16)),
}


@dataclass(frozen=True)
class Net:
    """A network of :data:`fatnn_rs.bench.networks.NETWORKS`.

    Attributes
    ----------
    ends
        What its first and last layer are on rungs of codes: ``"int8"``, or ``"float"`` as in a
        recipe.
    accuracies
        Results of ``benches/quantizers`` for this network: the file's name without ending; empty
        where there are none.
    """

    ends: str = "int8"
    accuracies: str = ""


#: Name in :data:`fatnn_rs.bench.networks.NETWORKS` → how it is measured.
NETWORKS: dict[str, Net] = {
    "resnet18": Net(),
    "resnet34": Net(),
    "resnet50": Net(),
    "vgg16_bn": Net(),
    "cifar-resnet20": Net(),
    "cifar-resnet20-conv": Net("float", "cifar10-resnet20"),
    "small-cnn": Net("float", "fashion-mnist"),
}

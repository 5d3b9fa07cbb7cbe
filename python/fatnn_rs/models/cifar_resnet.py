"""Residual networks for 32x32 images: 6n + 2 layers, three stages of 16, 32 and 64 channels.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), section
4.2. Shortcuts have no parameters (the paper's option A): at the start of a stage, they subsample
pixels with stride 2 and pad the new channels with zeros.

    input [N, 3, 32, 32] -> 3x3 convolution, 16 channels -> n blocks, 16 channels, 32x32
    -> n blocks, 32 channels, 16x16 -> n blocks, 64 channels, 8x8
    -> mean over pixels -> linear -> [N, classes]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError

__all__ = ["CifarBlock", "CifarResNet", "resnet20", "resnet32"]


class Shortcut(nn.Module):
    """Subsample pixels with ``stride`` and pad ``more`` channels of zeros, half on each side."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(1, stride)  # A 1x1 window only subsamples.
        self.pad = [0, 0, 0, 0, more // 2, more - more // 2]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + more, H / stride, W / stride]."""
        return functional.pad(self.pool(x), self.pad)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and shortcuts.

    Parameters
    ----------
    inputs, outputs
        Number of input and output channels.
    stride
        Stride of the first convolution.
    shortcut
        ``"block"``: one shortcut around both convolutions, as in the paper. ``"conv"``: one around
        each convolution (Z. Liu et al., "Bi-Real Net", ECCV 2018), which also carries what ternary
        activations cannot represent.
    order
        ``"post"``: convolution, BatchNorm, sum, ReLU. ``"pre"``: BatchNorm, ReLU, convolution, sum
        (K. He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016).
    identity_norm
        Whether shortcuts have a BatchNorm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        shortcut: str = "block",
        order: str = "post",
        identity_norm: bool = False,
    ) -> None:
        super().__init__()
        post = order == "post"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs if post else inputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        around: nn.Module = nn.Identity() if same else Shortcut(stride, outputs - inputs)
        self.shortcut = nn.Sequential(around, nn.BatchNorm2d(outputs)) if identity_norm else around
        self.shortcut2: nn.Module | None = None
        if shortcut == "conv":
            self.shortcut2 = nn.BatchNorm2d(outputs) if identity_norm else nn.Identity()
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return self._post(x) if self.post else self._pre(x)

    def _post(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        if self.shortcut2 is None:
            y, around = self.relu(y), self.shortcut(x)
        else:
            y = self.relu(y + self.shortcut(x))
            around = self.shortcut2(y)
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + around)
        return out

    def _pre(self, x: Tensor) -> Tensor:
        y, around = self.conv1(self.relu(self.bn1(x))), self.shortcut(x)
        if self.shortcut2 is not None:
            y = y + around
            around = self.shortcut2(y)
        out: Tensor = self.conv2(self.relu(self.bn2(y))) + around
        return out


class CifarResNet(nn.Module):
    """ResNet for CIFAR, initialised as in the paper (normal, scaled by fan-out).

    Parameters
    ----------
    depth
        6n + 2: 20, 32, 44, 56, 110.
    classes
        Number of outputs.
    shortcut, order, identity_norm
        Options of :class:`CifarBlock`. The defaults are the paper's.

    Raises
    ------
    ConfigError
        Unknown depth, shortcut or order.
    """

    def __init__(
        self,
        depth: int = 20,
        classes: int = 10,
        *,
        shortcut: str = "block",
        order: str = "post",
        identity_norm: bool = False,
    ) -> None:
        super().__init__()
        if shortcut not in ("block", "conv"):
            raise ConfigError(f"shortcut must be 'block' or 'conv', got {shortcut!r}")
        if order not in ("post", "pre"):
            raise ConfigError(f"order must be 'post' or 'pre', got {order!r}")
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inputs = 16
        for outputs in (16, 32, 64):
            for number in range(blocks):
                stride = 2 if number == 0 and outputs != 16 else 1
                stages.append(
                    CifarBlock(
                        inputs,
                        outputs,
                        stride,
                        shortcut=shortcut,
                        order=order,
                        identity_norm=identity_norm,
                    )
                )
                inputs = outputs
        if order == "pre":
            stages += [nn.BatchNorm2d(inputs), nn.ReLU()]
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] float32 -> logits [N, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))
        return logits


def resnet20(classes: int = 10, **options: Any) -> CifarResNet:
    """ResNet with 20 layers and 0.27 million parameters; options of :class:`CifarResNet`."""
    return CifarResNet(20, classes, **options)


def resnet32(classes: int = 10, **options: Any) -> CifarResNet:
    """ResNet with 32 layers and 0.46 million parameters; options of :class:`CifarResNet`."""
    return CifarResNet(32, classes, **options)

"""The residual networks for 32x32 images: 6n + 2 layers, three stages of 16, 32 and 64 channels.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), section 4.2. Shortcuts are
those of the paper's CIFAR experiments (option A): they have no parameters; where a stage begins, the shortcut takes
every second pixel and pads the new channels with zeros.

    input [N, 3, 32, 32] -> 3x3, 16 channels -> n blocks of 16 at 32x32 -> n of 32 at 16x16 -> n of 64 at 8x8
                         -> mean over pixels -> linear -> [N, classes]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError

__all__ = ["CifarBlock", "CifarResNet", "resnet20", "resnet32"]


class Shortcut(nn.Module):
    """Every ``stride``-th pixel, and ``more`` channels of zeros (half of them on either side)."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(1, stride)  # a window of one pixel: takes pixels, averages nothing
        self.pad = [0, 0, 0, 0, more // 2, more - more // 2]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + more, H / stride, W / stride]."""
        return functional.pad(self.pool(x), self.pad)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut; ReLU at the end."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else Shortcut(stride, outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """The network above; weights as in the paper (normal, scaled by fan-out).

    Parameters
    ----------
    depth
        6n + 2: 20, 32, 44, 56, 110.
    classes
        Outputs.

    Raises
    ------
    ConfigError
        Another depth.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stages: list[nn.Module] = []
        inputs = 16
        for outputs in (16, 32, 64):
            for number in range(blocks):
                stages.append(CifarBlock(inputs, outputs, stride=2 if number == 0 and outputs != 16 else 1))
                inputs = outputs
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


def resnet20(classes: int = 10) -> CifarResNet:
    """20 layers, 0.27 million parameters."""
    return CifarResNet(20, classes)


def resnet32(classes: int = 10) -> CifarResNet:
    """32 layers, 0.46 million parameters."""
    return CifarResNet(32, classes)

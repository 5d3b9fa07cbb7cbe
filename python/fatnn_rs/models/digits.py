"""A small residual network for 8x8 grey digits.

    input [N, 1, 8, 8] -> stem 3x3, 32 channels            8x8
                       -> block 32 -> 32                   8x8
                       -> block 32 -> 64, stride 2         4x4   (1x1 convolution in the shortcut)
                       -> block 64 -> 64                   4x4
                       -> block 64 -> 64                   4x4
                       -> mean over pixels -> linear -> [N, 10]

``fatnn_rs.prepare`` keeps the stem and the classifier in float and makes the nine convolutions of
the blocks ternary. The blocks are those of K. He et al., "Deep Residual Learning for Image
Recognition", CVPR 2016 (arXiv 1512.03385).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Block", "DigitsNet"]


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, a shortcut, and a final ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class DigitsNet(nn.Module):
    """Residual network for digits; the blocks have ``width`` and ``2 * width`` channels."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            Block(width, width),
            Block(width, 2 * width, stride=2),
            Block(2 * width, 2 * width),
            Block(2 * width, 2 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] float32 -> logits [N, classes]."""
        x = self.pool(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits

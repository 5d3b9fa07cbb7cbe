"""A small convolutional network for grey 28x28 images: 2.5 million MACs, 61 thousand parameters.

    input [N, 1, 28, 28] -> stem 5x5, 16 channels, stride 2             14x14
                         -> 3x3, 32 channels, max pool                  7x7
                         -> 3x3, 64 channels                            7x7
                         -> 3x3, 64 channels, stride 2                  4x4
                         -> mean over pixels -> linear -> [N, classes]

Every convolution is followed by BatchNorm and ReLU. It is small enough to compare quantizers on a
CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SmallCnn"]


def _layer(inputs: int, outputs: int, kernel: int, stride: int, norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU())


class SmallCnn(nn.Module):
    """A small convolutional network.

    Parameters
    ----------
    classes
        Number of outputs.
    width
        Channels of the stem; the other convolutions have two, four and four times as many.
    channels
        Channels of the images.
    norm
        Whether to use BatchNorm; if not, convolutions have a bias.
    """

    def __init__(
        self, classes: int = 10, width: int = 16, channels: int = 1, norm: bool = True
    ) -> None:
        super().__init__()
        self.stem = _layer(channels, width, 5, 2, norm)
        self.conv1 = _layer(width, 2 * width, 3, 1, norm)
        self.shrink = nn.MaxPool2d(2)
        self.conv2 = _layer(2 * width, 4 * width, 3, 1, norm)
        self.conv3 = _layer(4 * width, 4 * width, 3, 2, norm)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] float32 -> logits [N, classes]."""
        x = self.conv3(self.conv2(self.shrink(self.conv1(self.stem(x)))))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits

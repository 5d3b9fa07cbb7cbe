"""VGG-small, the usual network to compare binary and ternary training on CIFAR-10.

    input [N, 3, 32, 32] -> 2x (3x3, 128) -> max pool -> 2x (3x3, 256) -> max pool
    -> 2x (3x3, 512) -> max pool -> linear -> [N, classes]

Every convolution is followed by BatchNorm and ReLU. From D. Zhang et al., "LQ-Nets: Learned
Quantization for Highly Accurate and Compact Deep Neural Networks", ECCV 2018 (arXiv 1807.10029),
section 5.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VggSmall"]


class VggSmall(nn.Module):
    """VGG-small, 4.7 million parameters.

    Parameters
    ----------
    classes
        Number of outputs.
    width
        Channels of the first two convolutions; 128 in the paper.
    """

    def __init__(self, classes: int = 10, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [
                    nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            layers.insert(len(layers) - 2, nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(4 * 4 * inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] float32 -> logits [N, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits

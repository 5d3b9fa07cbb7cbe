"""A network for 32x32 images that trains in a few epochs: no shortcuts, codes to codes throughout.

    input [N, 3, 32, 32] -> 2x2 convolution, 24 channels, fixed (see below)       31x31
                         -> block, 64 * width channels                            15x15
                         -> block, 256 * width channels                           7x7
                         -> block, 256 * width channels                           3x3
                         -> 3x3 max pool -> linear -> [N, classes], times 1/9

A block is 3x3 convolution, 2x2 max pool, BatchNorm, ReLU, 3x3 convolution, BatchNorm, ReLU. With
``width=1``, an image takes 118 million MACs.

The layout, the initial values and the fixed first layer are those of K. Jordan, "94% on CIFAR-10 in
3.29 Seconds on a Single GPU", 2024 (arXiv 2404.00498), with ReLU in place of GELU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fatnn_rs.errors import ConfigError

__all__ = ["CifarFast", "whiten_"]


def whiten_(conv: nn.Conv2d, images: Tensor, epsilon: float = 5e-4) -> None:
    """Set a convolution's filters to the eigenvectors of image patches, and stop training them.

    Output channel i is the projection of a patch on eigenvector i, divided by the square root of
    its variance. The second half of the channels is the negative of the first half, so that a ReLU
    keeps both signs. The filters then have ``requires_grad=False``; a bias is set to zero and stays
    trainable.

    Parameters
    ----------
    conv
        A convolution with ``2 * in_channels * height * width`` outputs and without groups.
    images
        Images as the model gets them, float32 [N, in_channels, H, W].
    epsilon
        Added to every variance.

    Raises
    ------
    ConfigError
        ``conv`` has another number of outputs, or groups.
    """
    height, width = conv.kernel_size
    size = conv.in_channels * height * width
    if conv.groups != 1 or conv.out_channels != 2 * size:
        raise ConfigError(
            f"whitening needs a convolution with 2 x {size} output channels and one group, got "
            f"{conv.out_channels} outputs and {conv.groups} groups; change the layer, or set "
            "whiten_images=0"
        )
    patches = images.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, Y, X, height, width]
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, size).double()
    variances, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    filters = vectors.T / torch.sqrt(variances + epsilon)[:, None]
    with torch.no_grad():
        both = torch.cat([filters, -filters]).view(2 * size, conv.in_channels, height, width)
        conv.weight.copy_(both)
        if conv.bias is not None:
            conv.bias.zero_()
    conv.weight.requires_grad_(False)


class CifarFast(nn.Module):
    """A network for short training on 32x32 images.

    Parameters
    ----------
    classes
        Number of outputs.
    width
        Factor of the blocks' channels, which are rounded to a multiple of 8.
    norm_weight
        Whether BatchNorm's weights are trained. If not, they stay 1, and only biases are trained.

    Raises
    ------
    ConfigError
        ``width`` is not a number of at least 0.125.
    """

    def __init__(self, classes: int = 10, width: float = 1.0, norm_weight: bool = False) -> None:
        super().__init__()
        if (
            isinstance(width, bool)
            or not isinstance(width, (int, float))
            or not (0.125 <= width < math.inf)
        ):
            raise ConfigError(f"width must be a number of at least 0.125, got {width!r}")
        self.whiten = nn.Conv2d(3, 24, 2)
        layers: list[nn.Module] = [nn.ReLU()]
        inputs = 24
        for channels in (64, 256, 256):
            outputs = 8 * round(channels * width / 8)
            layers += [
                _convolution(inputs, outputs),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                _convolution(outputs, outputs),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.requires_grad_(norm_weight)
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.MaxPool2d(3)
        self.classifier = nn.Linear(inputs, classes, bias=False)
        with torch.no_grad():
            self.classifier.weight.div_(self.classifier.weight.std())

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] float32 -> logits [N, classes]."""
        x = self.pool(self.blocks(self.whiten(x)))
        logits: Tensor = self.classifier(torch.flatten(x, 1)) * (1 / 9)
        return logits


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3 convolution whose first ``inputs`` channels are the identity."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[: min(inputs, outputs)])
    return conv

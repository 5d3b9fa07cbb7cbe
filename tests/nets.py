"""Models that the tests share, and helpers that prepare, convert and compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

import fatnn_rs
from fatnn_rs.convert import TernaryNetwork, convert, verify
from fatnn_rs.nn import TernaryLayer
from fatnn_rs.quant import ActivationQuantizer


@torch.no_grad()
def ready(model: nn.Module, inputs: Any, seed: int = 0, **config: Any) -> nn.Module:
    """Prepare and calibrate a model; give its BatchNorms some negative and some zero weights."""
    config.setdefault("first", "ternary")
    config.setdefault("last", "ternary")
    fatnn_rs.prepare(model, fatnn_rs.TernaryConfig(**config), example_inputs=inputs)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, ActivationQuantizer) and not module.initialized:
            module.set_step(0.5)  # the layer saw only zeros
            module._set_state(initialized=True, half_range=True)
        if isinstance(module, _BatchNorm) and module.weight is not None:
            n = module.num_features
            module.weight.copy_(torch.randn(n, generator=generator))
            module.weight[torch.rand(n, generator=generator) < 0.1] = 0.0
            module.bias.copy_(torch.randn(n, generator=generator) * 0.5)
    for parameter in model.parameters():
        if parameter.dim() == 1 and bool((parameter == 0).all()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def exact(model: nn.Module, inputs: Any, others: tuple[Any, ...] = ()) -> TernaryNetwork:
    """Convert a model and assert that every code and output is the same, for all the inputs."""
    net = convert(model, inputs)
    for given in (inputs, *others):
        report = verify(model, net, given)
        assert report.codes_total > 0 or not any(
            isinstance(module, TernaryLayer) for module in model.modules()
        )
        assert report.codes_different == 0, str(report)
        assert report.max_abs_diff == 0.0, str(report)
        assert not report.not_compared, str(report)
    return net


def isa_caps() -> list[str]:
    """Return the values of ``FATNN_ISA`` that make a difference on this CPU; "" sets no cap."""
    features = fatnn_rs.cpu_info()["features_detected"]
    return ["scalar", *(["avx2"] if "avx2" in features else []), ""]


def ops_of(net: TernaryNetwork) -> list[str]:
    return [node.op for node in net.graph.nodes if node.op != "input"]


class Block(nn.Module):
    """A residual block with in-place ReLU and in-place addition."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.short = (
            nn.Identity()
            if stride == 1 and inner == outer
            else nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.short(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.layers = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2), Block(12, 12, 1))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


class PreActivation(nn.Module):
    """BatchNorm and ReLU before each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(9), nn.Conv2d(9, 9, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(9), nn.Conv2d(9, 9, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(functional.relu(self.bn1(x)))
        y = self.conv2(torch.relu(self.bn2(y)))
        return torch.add(x, y)


class Vgg(nn.Module):
    """Max-pools and a flatten between ternary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 10, 3, padding=1),
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.Conv2d(10, 70, 3, padding=1),
            nn.BatchNorm2d(70),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Hardtanh(0.0, 3.0),
            nn.Dropout2d(0.3),
            nn.Conv2d(70, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(6 * 2 * 2, 20, bias=False),
            nn.BatchNorm1d(20),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(20, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Functional(nn.Module):
    """Calls ``torch.nn.functional`` and tensor methods instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.conv3, self.conv4 = nn.Conv2d(7, 6, 1), nn.Conv2d(7, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(12, 11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 2, stride=1)
        x = functional.hardtanh(self.bn2(self.conv2(x)), 0.0, 2.0)
        x = functional.avg_pool2d(functional.relu6(x), 2)
        x = torch.cat([self.conv3(x), self.conv4(x)], 1)
        x = functional.dropout(x, 0.5, self.training).mean((2, 3))
        x = x.view(x.size(0), -1)
        return self.fc2(functional.leaky_relu(self.fc1(x), 0.1))


class Branching(nn.Module):
    """Branches on shapes, which torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        if x.shape[2] > 4:
            x = self.pool(x)
        y = self.conv3(functional.relu(self.bn2(self.conv2(x))))
        if y.shape == x.shape:
            y = y + x
        y = functional.adaptive_avg_pool2d(functional.relu(y), 2)
        return self.fc(y.reshape(y.shape[0], -1))


class OneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(5, 9, 3, padding="same"),
            nn.BatchNorm1d(9),
            nn.ReLU(),
            nn.Conv1d(9, 6, 5, stride=2, padding=4, dilation=2, groups=3, bias=False),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.MaxPool1d(3, 2, 1),
            nn.Conv1d(6, 7, 2, padding="valid"),
            nn.BatchNorm1d(7),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(7 * 4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(33, 130, bias=False), nn.BatchNorm1d(130)
        self.fc2, self.bn2 = nn.Linear(130, 17), nn.BatchNorm1d(17)
        self.fc3 = nn.Linear(17, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.fc1(x)).relu()
        x = torch.relu(self.bn2(self.fc2(x)))
        return self.fc3(x)


class TokenMlp(nn.Module):
    """Linear layers over [batch, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 20), nn.Linear(20, 9), nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc3(self.fc2(self.fc1(x).relu()).relu())


class Mobile(nn.Module):
    """Depthwise and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Conv2d(12, 8, 1, groups=4, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, (1, 3), padding=(0, 2), groups=2, bias=True),
            nn.BatchNorm2d(6),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class TwoInputs(nn.Module):
    """Two inputs, a layer called three times, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, Any]:
        x, y = functional.relu(self.bn(self.shared(x))), functional.relu(self.bn(self.shared(y)))
        z = self.head(self.shared(x))
        return {"x": x, "all": (z, [y]), "scale": scale}


class TwoConvs(nn.Module):
    """Two ternary convolutions with a ReLU between them; subclasses define the forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def both(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def chain_like(*between: nn.Module, kernel: int = 3) -> nn.Module:
    """Return two convolutions, 3 to 8 and 8 to 4 channels, with ``between`` in the middle."""
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel, padding=1, bias=False), *between, nn.Conv2d(8, 4, 3, padding=1)
    )


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


#: Name → (model, example inputs, other inputs).
MODELS: dict[str, tuple[Callable[[], nn.Module], Any, tuple[Any, ...]]] = {
    "resnet": (ResNet, image(3, 3, 32, 32), (image(1, 3, 40, 33),)),
    "preactivation": (PreActivation, image(2, 3, 9, 8), (image(1, 3, 5, 5),)),
    "vgg": (Vgg, image(2, 3, 13, 11), (image(1, 3, 13, 11, seed=1),)),
    "functional": (Functional, image(2, 3, 12, 12), (image(1, 3, 12, 12),)),
    "branching": (Branching, image(2, 3, 8, 8), (image(1, 3, 8, 8), image(5, 3, 8, 8))),
    "one dimension": (OneDimension, image(2, 5, 19), (image(1, 5, 19, seed=2),)),
    "mlp": (Mlp, image(16, 33), (image(1, 33),)),
    "token mlp": (TokenMlp, image(2, 7, 12), (image(3, 2, 12),)),
    "mobile": (Mobile, image(2, 3, 9, 10), (image(1, 3, 4, 4),)),
    "two inputs": (TwoInputs, (image(2, 4, 6, 6), image(2, 4, 5, 7)), ()),
}

"""Where values are rounded: the places of several kinds of networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nets import ResNet, Vgg, ready
from value_nets import (
    IMAGE,
    TOKENS,
    Attention,
    Join,
    Returned,
    Squeeze,
    Stem,
    converted,
    value_names,
)


@pytest.mark.parametrize(
    ("build", "shape", "wanted"),
    [
        # Only the value that a residual adds. It is rounded before the max-pool.
        (Stem, IMAGE, {"stem_2"}),
        # Inputs and outputs of SiLU and hardsigmoid. A layer reads the mean.
        (Squeeze, IMAGE, {"body_1", "silu", "up", "hardsigmoid"}),
        # One step for everything that is joined.
        (Join, IMAGE, {"relu"}),
        # The residual stream, and the input of GELU. A layer reads its output.
        (Attention, TOKENS, {"embed", "add"}),
        # Only the inner value; the output stays float.
        (Returned, IMAGE, {"relu"}),
        # Codes between all layers.
        (Vgg, (2, 3, 12, 12), set()),
        # Not the first block: only layers of the next block, one of them its shortcut, read it.
        (ResNet, (2, 3, 32, 32), {"stem_2", "layers_1_relu_1", "layers_2_relu_1"}),
    ],
)
def test_values_are_rounded_where_chains_end(
    build: Callable[[], nn.Module], shape: tuple[int, ...], wanted: set[str]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    net = converted(ready(build(), x, last="int8"), x)
    assert set(value_names(net.reference())) == wanted


def test_values_that_a_cat_joins_share_a_step() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    net = converted(ready(Join(), x), x)
    rounded = [node for node in net.graph.nodes if node.op == "fake_quantize"]
    assert len(rounded) == 3
    assert len({tuple(node.attrs.values()) for node in rounded}) == 1
    assert rounded[0].attrs["low"] == -128  # the second branch has negative values


def test_output_stays_float_while_its_readers_get_int8() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    model = ready(Returned(), x)
    net = converted(model, x)
    assert torch.equal(net(x)[0], model(x)[0])
    assert not torch.equal(net(x)[1], model(x)[1])


class WritesIntoViews(nn.Module):
    """Writes into a part of a residual stream that is read as a whole afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        part = x[:, :2]
        part += 1.0
        x[:, 3:] = 0.5
        return self.c(torch.sigmoid(x + self.b(x)).mul_(2.0))


def test_writes_into_views_reach_what_reads_the_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9)
    model = ready(WritesIntoViews(), x)
    net = converted(model, x)
    assert set(value_names(net.reference())) == {"add", "sigmoid"}
    kept: list[Tensor] = []
    net.reference().int8_values.add.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    net.reference()(x)
    given = model.a(x).relu()
    given[:, :2] += 1.0
    given[:, 3:] = 0.5
    torch.testing.assert_close(kept[0], given + model.b(given))

"""Models that branch on the batch size, captured by torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn


class _Branches(nn.Module):
    """Branches at a batch size; its outputs are zero, so that only codes show the branch."""

    def __init__(self, special: int) -> None:
        super().__init__()
        self.special = special
        self.first = nn.Linear(32, 8, bias=False)
        self.last = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 0] = 0.3
        if x.shape[0] == self.special:
            x = x + 2.0
        y: Tensor = self.last(self.first(x)) * 0.0
        return y


def _converted(special: int, example: int) -> tuple[nn.Module, Tensor, fatnn.TernaryNetwork]:
    torch.manual_seed(0)
    model = _Branches(special)
    x = torch.randn(example, 32)
    fatnn.prepare(model, fatnn.TernaryConfig(first="ternary", last="ternary"), example_inputs=x)
    model(x)
    model.eval()
    return model, x, fatnn.convert(model, x)


@pytest.mark.parametrize("special", [0, 1, 2, 3])
@pytest.mark.parametrize("example", [1, 2, 3])
def test_no_batch_runs_another_batchs_branch(special: int, example: int) -> None:
    model, x, net = _converted(special, example)
    taken = 0
    for batch in range(5):
        given = torch.randn(batch, 32)
        try:
            net(given)
        except fatnn.InputError:  # the model branches elsewhere at this batch
            continue
        taken += 1
        if batch:
            assert fatnn.verify(model, net, given).identical, batch
    assert taken >= 1
    assert fatnn.verify(model, net, x).identical


def test_a_branch_at_one_leaves_the_batches_from_two() -> None:
    _, _, net = _converted(special=1, example=2)
    assert net(torch.randn(7, 32)).shape == (7, 3)
    with pytest.raises(fatnn.InputError):
        net(torch.randn(1, 32))

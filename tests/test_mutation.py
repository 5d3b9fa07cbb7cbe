"""Models that write into tensors: the network gives the eager result, or convert refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import ConversionError, InputError, UnsupportedError, save
from fatnn_rs.convert import convert
from nets import exact, image, ready

X = image(2, 4, 6, 6)


class FunctionBetweenLayers(nn.Module):
    """Two ternary layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def scaled_view(x: Tensor) -> Tensor:
    x = x.relu()
    x[:, :4] *= 0.5
    return x


def set_channel(x: Tensor) -> Tensor:
    x[:, 0] = 1.0
    return x


def set_channel_from_another(x: Tensor) -> Tensor:
    x[:, -1] = x[:, 0]
    return x


def chunks(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a += b
    return x


def chunk_read_afterwards(x: Tensor) -> Tensor:
    a, b = x.split(4, 1)
    b.mul_(2.0)
    return torch.cat([b, a], 1) + x


def view_of_view(x: Tensor) -> Tensor:
    part = x[:, 2:6]
    rows = part[:, :, 1:3]
    rows.add_(1.0)
    part.relu_()
    return x


def write_after_flatten(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    x.relu_()
    return flat.view_as(x)


def write_to_flatten(x: Tensor) -> Tensor:
    x.flatten(1).relu_()
    return x


def write_twice(x: Tensor) -> Tensor:
    y = x.view(x.shape)
    x.mul_(0.5)
    y[:, 1] = 0.25
    x.add_(y)
    return x + y


def out_is_the_input(x: Tensor) -> Tensor:
    torch.add(x, 1.0, out=x)
    return x


def out_is_another(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.mul(x, 0.5, out=y)
    torch.sub(y, x, out=y[:, :])
    return x + y


def copied_into(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, ::2].copy_(x[:, ::2])
    return y


def transposed(x: Tensor) -> Tensor:
    x.transpose(0, 1).swapaxes(2, 3).add_(0.5)
    return x


def filled_where(x: Tensor) -> Tensor:
    x.masked_fill_(x < 0, 0.125)
    return x


def index_put(x: Tensor) -> Tensor:
    x[x > 0.5] = 0.0
    return x


def foreach_on_views(x: Tensor) -> Tensor:
    a, b = x[:, :4], x[:, 4:]
    torch._foreach_mul_([a, b], 0.5)
    return x


def through_data(x: Tensor) -> Tensor:
    x.data[:, 1].mul_(3.0)
    return x


def detached(x: Tensor) -> Tensor:
    x.detach().clamp_(-0.5, 0.5)
    return x


def module_in_place(x: Tensor) -> Tensor:
    nn.functional.silu(x[:, :3], inplace=True)
    return x


def unbound(x: Tensor) -> Tensor:
    torch.unbind(x, 1)[2].zero_()
    return x


def initialised(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    nn.init.constant_(y, 0.5)
    return x + y


def expanded(x: Tensor) -> Tensor:
    y = x.mean(1, keepdim=True).expand_as(x)
    x += y
    return x + y


def old_value_kept(x: Tensor) -> Tensor:
    y = x * 1.0
    x.sub_(1.0)
    return x * y


def loop(x: Tensor) -> Tensor:
    for i in range(4):
        x[:, i] = x[:, i] + x[:, i + 1] * 0.5
    return x


def diagonal(x: Tensor) -> Tensor:
    x.diagonal(dim1=2, dim2=3).fill_(0.75)
    return x


def narrow_addcmul(x: Tensor) -> Tensor:
    x.narrow(1, 1, 2).addcmul_(x[:, :2].clone(), x[:, 2:4].clone(), value=0.5)
    return x


def scatter(x: Tensor) -> Tensor:
    index = torch.tensor([3, 1])
    x.index_add_(1, index, x[:, :2] * 0.5)
    x.index_fill_(1, torch.tensor([0]), 0.5)
    return x


def augmented(x: Tensor) -> Tensor:
    h = x
    h += 1.0
    h -= 0.5
    y = x[:, :3]
    y *= 0.5
    y /= 3.0
    return x * h


def augmented_integers(x: Tensor) -> Tensor:
    n = x.shape[0]
    n += 2
    n //= 2
    codes = (x > 0).int()
    codes <<= 1
    codes |= 1
    codes %= 3
    return x * codes + float(2) * n


def swapped(x: Tensor) -> Tensor:
    top, bottom = x[:, :4], x[:, 4:]
    kept = top.clone()
    top.copy_(bottom)
    bottom.copy_(kept)
    return x


FUNCTIONS = [
    scaled_view, set_channel, set_channel_from_another, chunks, chunk_read_afterwards,
    view_of_view, write_after_flatten, write_to_flatten, write_twice, out_is_the_input,
    out_is_another, copied_into, transposed, filled_where, index_put, foreach_on_views,
    through_data, detached, module_in_place, unbound, initialised, expanded, old_value_kept, loop,
    diagonal, narrow_addcmul, scatter, augmented, augmented_integers, swapped,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("last", [False, True])
def test_in_place_writes_give_the_eager_result(
    function: Callable[[Tensor], Tensor], last: bool
) -> None:
    torch.manual_seed(3)
    x = X.contiguous(memory_format=torch.channels_last) if last else X
    model = ready(FunctionBetweenLayers(function), x)
    others = (image(1, 4, 6, 6, seed=5), image(3, 4, 6, 6, seed=6))
    depends_on_size = function in (
        write_after_flatten,
        write_to_flatten,
    )  # whether a flatten is a view depends on the input's size
    net = exact(model, x, others if not last and not depends_on_size else ())
    if depends_on_size:
        with pytest.raises(InputError, match="one shape only"):
            net(others[0])
    before = x.clone()
    net(x)
    assert torch.equal(x, before)
    if any(node.op == "torch" and "writes" in node.note for node in net.graph.nodes):
        other = X if last else X.contiguous(memory_format=torch.channels_last)
        with pytest.raises(InputError, match=r"expected the example's memory format"):
            net(other)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_in_place_writes_give_the_eager_result_if_captured_by_export(
    function: Callable[[Tensor], Tensor],
) -> None:
    class Branches(FunctionBetweenLayers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[1] == 4 else x

    torch.manual_seed(3)
    model = ready(Branches(function), X)
    if function is through_data:
        with pytest.raises(ConversionError, match="cannot be captured"):
            convert(model, X)
        return
    exact(model, X)


def test_save_refuses_in_place_writes_to_views(tmp_path: Any) -> None:
    torch.manual_seed(3)

    def every_second(x: Tensor) -> Tensor:
        x[:, ::2] *= 2
        return x

    net = convert(ready(FunctionBetweenLayers(every_second), X), X)
    with pytest.raises(UnsupportedError, match=r"mul|setitem"):
        save(net, tmp_path / "net.safetensors")


def test_in_place_addition_and_relu_run_in_the_engine() -> None:
    def function(x: Tensor) -> Tensor:
        x += x.sigmoid()
        return x.relu_()

    torch.manual_seed(3)
    net = exact(ready(FunctionBetweenLayers(function), X), X)
    assert not [node for node in net.graph.nodes if node.op == "torch"]


class CountsCalls(nn.Module):
    """Counts its calls in a buffer, and may add the count to its result."""

    count: Tensor

    def __init__(self, reads: bool, reads_after_write: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.register_buffer("count", torch.zeros(()))
        self.reads, self.reads_after_write = reads, reads_after_write

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.reads and not self.reads_after_write:
            y = y + self.count
        self.count.add_(1.0)
        return y + self.count if self.reads and self.reads_after_write else y


def test_counter_buffer_that_is_never_read_is_left_out() -> None:
    model = ready(CountsCalls(reads=False), X)
    before = model.get_buffer("count").clone()
    convert(model, X)
    assert torch.equal(model.get_buffer("count"), before)
    exact(model, X)


def test_counter_buffer_that_export_captures_is_noted_by_name() -> None:
    class Branches(CountsCalls):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[1] == 4 else x

    net = exact(ready(Branches(reads=False), X), X)
    assert any("'count'" in note for note in net.graph.notes)


@pytest.mark.parametrize("reads_after_write", [False, True])
def test_counter_buffer_that_is_read_is_refused(reads_after_write: bool) -> None:
    model = ready(CountsCalls(reads=True, reads_after_write=reads_after_write), X)
    before = model.get_buffer("count").clone()
    with pytest.raises(ConversionError, match=r"keeps state from call to call"):
        convert(model, X)
    assert torch.equal(model.get_buffer("count"), before)


class RemembersInputs(nn.Module):
    """Adds its previous result, which it keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.last:
            y = y + self.last[-1]
        self.last.append(y)
        return y


def test_state_in_a_list_attribute_is_refused_and_restored() -> None:
    model = ready(RemembersInputs(), X)
    model.last.clear()
    with pytest.raises(ConversionError, match=r"two results for the same inputs"):
        convert(model, X)
    assert not model.last


def test_random_numbers_are_refused() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), Noise(), nn.Conv2d(4, 4, 3)), X)
    with pytest.raises(ConversionError, match=r"draws random numbers"):
        convert(model, X)


def test_cache_filled_while_tracing_holds_no_proxies_afterwards() -> None:
    """The forward of timm's LeViT fills such a cache."""

    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.bias = nn.Parameter(torch.randn(4, 1, 1))
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if "bias" not in self.cache:
                self.cache["bias"] = self.bias * 2
            return y + self.cache["bias"]

    model = ready(Caches(), X)
    model.cache.clear()
    for _ in range(2):
        exact(model, X)
        assert all(type(value) is Tensor for value in model.cache.values())


@pytest.mark.parametrize(
    "change", [lambda x: x.unsqueeze_(0)[0], lambda x: x.transpose_(0, 1), lambda x: x.t_()]
)
def test_in_place_change_of_shape_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(3)

    model = ready(FunctionBetweenLayers(lambda x: x + change(x[0, 0].clone()).sum()), X)
    with pytest.raises(
        ConversionError, match=r"changes the shape or the memory of a tensor in place"
    ):
        exact(model, X)


def test_branch_on_memory_format_fixes_the_format() -> None:
    class Asks(FunctionBetweenLayers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0.5 if x.is_contiguous() else x)

    torch.manual_seed(3)
    model = ready(Asks(torch.relu), X)
    net = exact(model, X, (image(5, 4, 6, 6),))
    with pytest.raises(InputError, match=r"expected the example's memory format \(contiguous\)"):
        net(X.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("last", [False, True])
def test_write_after_a_copy_that_other_formats_make_a_view_fixes_the_format(last: bool) -> None:
    class Writes(FunctionBetweenLayers):
        def forward(self, x: Tensor) -> Tensor:
            copied = x.flatten(1)  # a view of contiguous maps, a copy of channels-last maps
            x.mul_(-0.5)
            return super().forward(copied.reshape(x.shape))

    torch.manual_seed(3)
    last_x = X.contiguous(memory_format=torch.channels_last)
    example, other = (last_x, X) if last else (X, last_x)
    net = exact(ready(Writes(torch.relu), example), example)
    with pytest.raises(InputError, match="expected the example's memory format"):
        net(other)


def test_assignment_to_data_is_refused() -> None:
    class Assigns(FunctionBetweenLayers):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y.data = y.data * 0.5
            return self.b(y)

    torch.manual_seed(3)
    model = ready(Assigns(torch.relu), X)
    with pytest.raises(ConversionError, match="its forward assigns to 'data' of a tensor"):
        convert(model, X)

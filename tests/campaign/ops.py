"""Adversarial calls: every public function and operator with arguments of every wrong kind."""

from __future__ import annotations

import linecache
import random
import re
import traceback
from typing import Any

import torch

from campaign.outcome import FINDING, OK, REFUSED, Outcome, described, is_ours, normal, refusal

HEADER = """\
import copy, os, pathlib, pickle, tempfile
import numpy as np
import torch
from torch import nn
import fatnn_rs as fatnn
from fatnn_rs import _core, ops
os.chdir(tempfile.mkdtemp())
inf, nan = float('inf'), float('nan')


def misaligned(array):
    \"\"\"The same values one byte off.\"\"\"
    buffer = bytearray(array.nbytes + 1)
    buffer[1:] = array.tobytes()
    return np.frombuffer(buffer, array.dtype, offset=1).reshape(array.shape)

"""

#: Each takes the text of a tensor.
TENSORS = (
    *("{0}.to('meta')", "{0}.float()", "{0}.double()", "{0}.to(torch.int64)", "{0}.to(torch.int8)", "{0}.bool()"),
    *("{0}.flatten()", "{0}[None]", "{0}[:0]", "{0}[..., :0]", "{0}[..., ::2]", "{0}.transpose(0, -1)", "{0}.flip(0)"),
    *("{0}.clone().requires_grad_()", "nn.Parameter({0})", "torch.from_numpy(misaligned({0}.numpy()))", "{0}[:1].expand({0}.shape)"),
    *("{0}.to_sparse()", "{0}.to(torch.complex64)", "{0}.half()", "{0}.bfloat16()", "torch.zeros(())", "torch.zeros(0)", "None", "3"),
    *("{0}.numpy()", "[{0}]", "'text'", "torch.zeros((1 << 40, 0))", "torch.zeros((0, 1 << 62))", "torch.zeros([1] * 20)"),
    *("{0} * nan", "{0} * inf", "torch.randint(0, 256, {0}.shape, dtype=torch.uint8)", "torch.full_like({0}, 127)"),
    *("torch.cat([{0}, {0}])", "{0}[1:]", "{0}[..., 1:]", "{0}.conj()", "torch._neg_view({0}.float())", "{0}.to(torch.float8_e4m3fn)"),
    *("{0}.contiguous().as_strided({0}.shape, [0] * {0}.dim())", "torch.empty(1).expand(1 << 40, 1, 1, 1)", "torch.nested.nested_tensor([{0}])"),
    *("torch.empty(1).expand(1 << 33, 3, 2, 2)", "{0}.to(torch.uint8)", "{0}.to(torch.int32)", "{0}.unsqueeze(-1)", "{0}.squeeze()"),
)  # fmt: skip

ARRAYS = (
    *("misaligned({0})", "{0}[..., ::2]", "{0}.astype(np.float64)", "{0}.astype(np.float32)", "{0}.astype(np.int8)", "{0}.astype(np.uint8)"),
    *("{0}.astype({0}.dtype.newbyteorder('>'))", "np.asfortranarray({0})", "{0}.T", "{0}[:0]", "{0}[..., :0]", "{0}.ravel()", "{0}[None]"),
    *("np.zeros((), {0}.dtype)", "np.zeros((1,) * 32, {0}.dtype)", "{0}.astype(object)", "None", "3", "{0}.tolist()", "'text'", "{0}[::-1]"),
    *("np.ma.masked_array({0})", "{0}.view(np.recarray)", "np.broadcast_to({0}[:1], {0}.shape)", "{0}.astype(np.float16)", "torch.from_numpy({0})"),
    *("np.zeros((0, 1 << 62), {0}.dtype)", "{0}.astype(bool)", "np.full_like({0}, 127)", "np.full({0}.shape, np.nan, np.float32)", "{0}.astype(np.complex64)"),
    *("np.lib.stride_tricks.as_strided({0}, {0}.shape, (0,) * {0}.ndim)", "np.concatenate([{0}, {0}])", "{0}[1:]", "memoryview({0})"),
)  # fmt: skip

INTEGERS = ("0", "-1", "1", "2", "3", "7", "255", "1 << 16", "1 << 31", "(1 << 31) - 1", "1 << 32", "1 << 60", "(1 << 63) - 1", "1 << 63", "1 << 64", "-(1 << 63)", "1.5", "nan", "True", "None", "'x'", "[1]", "np.int64(2)", "torch.tensor(2)", "1e308", "10**30")  # fmt: skip
LISTS = ("[]", "[1]", "[0, 0]", "[-1, -1]", "[1, 3]", "[3, 1]", "[1, 1]", "[2, 2]", "[1 << 31, 1 << 31]", "[1 << 60, 1]", "[(1 << 63) - 1, 1]", "[1 << 63, 1]", "[-(1 << 63), 0]", "[1, 1, 1]", "[1] * 65", "None", "3", "'ab'", "[1.5, 1.5]", "[nan, 1]", "[None, 1]", "(1, 2)", "np.array([1, 2])", "torch.tensor([1, 1])", "{0}", "[8192, 8192]", "[1 << 32, 1 << 32]", "[100000, 1]")  # fmt: skip
FLOATS = ("0.0", "-1.0", "nan", "inf", "-inf", "1e-45", "1e-320", "1e308", "1e39", "None", "'x'", "1 << 200", "True", "-0.0", "3.4e38")  # fmt: skip
FLOAT_LISTS = ("[]", "[0.5]", "[1.0, 0.5]", "[nan, nan]", "[0.5, inf]", "[-inf, inf]", "[inf, inf]", "[0.5, 1.0, 1.5, 2.0]", "[0.1, 0.2, 0.3]", "None", "0.5", "['a', 'b']", "[1e-46, 1e300]", "[0.0, -0.0]", "[0.5, 1.0] * 1000", "torch.tensor([0.5, 1.0])", "[1 << 2000, 1]")  # fmt: skip
BOOLS = ("True", "False", "None", "2", "'x'", "nan", "[]")
TEXTS = (
    "''",
    "'x'",
    "None",
    "3",
    "b'half'",
    "'\\0'",
    "'half'",
    "'uint2'",
    "'a' * 100000",
    "['half']",
    "'\\ud800'",
    "'HALF'",
)
POOLS = {
    "t": TENSORS,
    "a": ARRAYS,
    "i": INTEGERS,
    "l": LISTS,
    "f": FLOATS,
    "F": FLOAT_LISTS,
    "b": BOOLS,
    "s": TEXTS,
}


def _geometry(r: random.Random) -> dict[str, Any]:
    g: dict[str, Any] = {
        "n": r.choice((1, 2, 3)),
        "groups": r.choice((1, 1, 2, 3)),
        "kernel": [r.choice((1, 2, 3)), r.choice((1, 1, 3))],
        "stride": [r.choice((1, 2)), r.choice((1, 2))],
        "padding": [r.choice((0, 1)), r.choice((0, 1, 2))],
        "dilation": [r.choice((1, 2)), 1],
        "h": r.choice((5, 6, 9)),
        "w": r.choice((3, 5, 8)),
    }
    g["c"] = g["groups"] * r.choice((1, 2, 5, 33, 64))
    g["o"] = g["groups"] * r.choice((1, 3, 8, 17))
    g["coding"] = r.choice(("full", "half", "uint2"))
    return g


SETUP = """\
torch.manual_seed(0)
codes = torch.randint({low}, {high}, ({n}, {h}, {w}, {c}), dtype=torch.int8)
weight = torch.randint(-1, 2, ({o}, {c} // {groups}, {kernel[0]}, {kernel[1]}), dtype=torch.int8)
packed = torch.ops.fatnn_rs.pack_codes(codes, {groups}, {code_type!r})
blob = ops.prepack(weight, {groups}, {coding!r})
x = torch.randn({n}, {c}, {h}, {w})
scale, bias = torch.rand({o}) + 0.5, torch.randn({o})
thresholds = torch.tensor([[-1] * {o}, [2] * {o}], dtype=torch.int32)
plain = torch.randint(-127, 128, ({o}, {c} // {groups}, {kernel[0]}, {kernel[1]}), dtype=torch.int8)
blob8 = ops.prepack_int8(plain, {groups}, False)
window = [{kernel}, {stride}, {padding}, {dilation}]
levels = codes.float() {shift}
acc = nn.functional.conv2d(levels.permute(0, 3, 1, 2).double(), weight.double(), None, {stride}, {padding}, {dilation}, {groups})
"""

_WINDOW = (
    ("kernel", "l", "{kernel}"),
    ("stride", "l", "{stride}"),
    ("padding", "l", "{padding}"),
    ("dilation", "l", "{dilation}"),
)

#: Operator → arguments: name, pool, right value; then what a right call gives, or "".
OPERATORS: dict[str, tuple[tuple[tuple[str, str, str], ...], str]] = {
    "quantize": (
        (("x", "t", "x"), ("thresholds", "F", "[0.25, 1.0]"), ("groups", "i", "{groups}")),
        "",
    ),
    "pack_codes": (
        (("codes", "t", "codes"), ("groups", "i", "{groups}"), ("code_type", "s", "{code_type!r}")),
        "packed",
    ),
    "unpack_codes": (
        (
            ("packed", "t", "packed"),
            ("channels", "i", "{c}"),
            ("groups", "i", "{groups}"),
            ("code_type", "s", "{code_type!r}"),
        ),
        "codes",
    ),
    "conv_acc": (
        (("codes", "t", "packed"), ("weight", "t", "blob"), ("out_channels", "i", "{o}"), *_WINDOW),
        "acc",
    ),
    "conv_codes": (
        (
            ("codes", "t", "packed"),
            ("weight", "t", "blob"),
            ("thresholds", "t", "thresholds"),
            ("out_channels", "i", "{o}"),
            *_WINDOW,
            ("out_groups", "i", "1"),
        ),
        "",
    ),
    "conv_float": (
        (
            ("codes", "t", "packed"),
            ("weight", "t", "blob"),
            ("scale", "t", "scale"),
            ("bias", "t", "bias"),
            ("residual", "t", "None"),
            ("relu", "b", "False"),
            ("out_channels", "i", "{o}"),
            *_WINDOW,
        ),
        "",
    ),
    "conv_int8": (
        (
            ("x", "t", "x"),
            ("weight", "t", "blob8"),
            ("scale", "t", "scale"),
            ("bias", "t", "bias"),
            ("inv_step", "f", "16.0"),
            ("out_channels", "i", "{o}"),
            *_WINDOW,
        ),
        "",
    ),
    "max_pool_codes": (
        (
            ("codes", "t", "packed"),
            ("kernel", "l", "[2, 2]"),
            ("stride", "l", "{stride}"),
            ("padding", "l", "[0, 1]"),
            ("dilation", "l", "[1, 1]"),
            ("ceil_mode", "b", "True"),
            ("code_type", "s", "{code_type!r}"),
        ),
        "",
    ),
}

OUT = "np.zeros(({n}, {oh}, {ow}, {o}), np.{dtype})"
_STEPS = (
    ("stride", "l", "{stride}"),
    ("padding", "l", "{padding}"),
    ("dilation", "l", "{dilation}"),
)

#: Functions of the extension module and of `ops`: arguments in order, pool and right value.
CORE: dict[str, tuple[tuple[str, str], ...]] = {
    "_core.quantize": (
        *(
            ("a", "x.numpy()"),
            ("i", "{n}"),
            ("i", "{c}"),
            ("i", "{h} * {w}"),
            ("b", "False"),
            ("F", "[0.25, 1.0]"),
        ),
        *(
            ("i", "{groups}"),
            ("a", "np.zeros({n} * {h} * {w} * ops.packed_bytes({c}, {groups}), np.uint8)"),
        ),
    ),
    "_core.pack_codes": (("a", "codes.numpy()"), ("i", "{groups}"), ("s", "{code_type!r}")),
    "_core.unpack_codes": (
        ("a", "packed.numpy()"),
        ("i", "{c}"),
        ("i", "{groups}"),
        ("s", "{code_type!r}"),
    ),
    "_core.kernels_for": (("a", "weight.numpy()"), ("s", "{coding!r}")),
    "_core.prepack": (
        ("a", "weight.numpy()"),
        ("i", "{groups}"),
        ("s", "{coding!r}"),
        ("s", "None"),
    ),
    "_core.packed_info": (("a", "blob.numpy()"),),
    "_core.packed_bytes": (("i", "{c}"), ("i", "{groups}")),
    "_core.kernel_for": (
        ("i", "{o}"),
        ("i", "{c}"),
        ("b", "False"),
        ("s", "'half'"),
        ("s", "'ternary'"),
    ),
    "_core.int8_kernel_for": (("b", "False"), ("b", "True")),
    "_core.set_num_threads": (("i", "2"),),
    "_core.set_default_threads": (("i", "2"),),
    "_core.conv_acc": (
        *(
            ("a", "packed.numpy()"),
            ("a", "blob.numpy()"),
            ("l", "{stride}"),
            ("l", "{padding}"),
            ("l", "{dilation}"),
        ),
        ("a", "np.zeros(({n}, *acc.shape[2:], {o}), np.int32)"),
    ),
    "_core.conv_float": (
        *(
            ("a", "packed.numpy()"),
            ("a", "blob.numpy()"),
            ("a", "scale.numpy()"),
            ("a", "bias.numpy()"),
            ("a", "None"),
        ),
        *(("b", "True"), ("l", "{stride}"), ("l", "{padding}"), ("l", "{dilation}")),
        ("a", "np.zeros(({n}, *acc.shape[2:], {o}), np.float32)"),
    ),
    "_core.conv_codes": (
        *(("a", "packed.numpy()"), ("a", "blob.numpy()"), ("a", "thresholds.numpy()")),
        *(("l", "{stride}"), ("l", "{padding}"), ("l", "{dilation}"), ("i", "1")),
        ("a", "np.zeros(({n}, *acc.shape[2:], ops.packed_bytes({o}, 1)), np.uint8)"),
    ),
    "_core.max_pool_codes": (
        *(
            ("a", "packed.numpy()"),
            ("i", "{c}"),
            ("i", "{groups}"),
            ("l", "[1, 1]"),
            ("l", "[1, 1]"),
            ("l", "[0, 0]"),
        ),
        *(("l", "[1, 1]"), ("s", "{code_type!r}"), ("a", "np.zeros_like(packed.numpy())")),
    ),
    "_core.prepack_int8": (("a", "plain.numpy()"), ("i", "{groups}"), ("b", "False")),
    "_core.conv_int8": (
        *(
            ("a", "x.numpy()"),
            ("a", "blob8.numpy()"),
            ("a", "scale.numpy()"),
            ("a", "bias.numpy()"),
            ("f", "16.0"),
        ),
        *(("l", "{stride}"), ("l", "{padding}"), ("l", "{dilation}"), ("b", "False")),
        ("a", "np.zeros(({n}, *acc.shape[2:], {o}), np.float32)"),
    ),
    "_core.save": (
        ("s", "'net'"),
        ("s", "'{{}}'"),
        ("l", "{{'w': weight.numpy(), 'x': x.numpy()}}"),
        ("l", "{{}}"),
    ),
    "_core.load": (("s", "'absent'"),),
    "_core.Network": (("s", "'{{}}'"), ("l", "{{}}"), ("l", "[]")),
    "_core.Network.load": (("s", "'absent'"),),
    "ops.prepack": (("t", "weight"), ("i", "{groups}"), ("s", "{coding!r}")),
    "ops.prepack_int8": (("t", "plain"), ("i", "{groups}"), ("b", "False")),
    "ops.packed_bytes": (("i", "{c}"), ("i", "{groups}")),
    "fatnn.set_num_threads": (("i", "2"),),
}

MODEL = """\
torch.manual_seed(0)


def make():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 1), nn.Flatten(), nn.Linear(6 * 16, 3),
    )


x = torch.randn(2, 3, 6, 6)
model = make()
fatnn.prepare(model, fatnn.TernaryConfig(last={last!r}, first={first!r}), example_inputs=x)
model.eval()
net = fatnn.convert(model, x)
fatnn.save(net, 'net')
array = fatnn.load_numpy('net')
rust = fatnn.load('net', float_layers='rust')
"""

#: Anything at all, for arguments of the public functions.
THINGS = (
    *("None", "3", "-1", "1.5", "nan", "'x'", "''", "b'x'", "[]", "()", "{}", "object()", "x", "x.numpy()", "[x]", "(x,)", "(x, x)"),
    *("(x, 2.0)", "{'x': x}", "[None]", "x.double()", "x.half()", "x[:0]", "x[:, :2]", "x[0]", "x[..., None]", "x.to('meta')"),
    *("x * nan", "x * inf", "x * 1e-45", "x * 0", "x[:, :, :1, :1]", "x[:, :, :0]", "x.int()", "x > 0", "x.to_sparse()", "nn.Parameter(x)"),
    *("make()", "make().eval()", "model", "net", "array", "nn.Module()", "nn.Identity()", "nn.Linear(8, 0)", "nn.Linear(0, 8)", "nn.Sequential()"),
    *("nn.Conv2d(3, 4, 3)", "make().to('meta')", "make().double()", "make().half()", "torch.compile(make())", "nn.DataParallel(make())"),
    *("copy.deepcopy(model)", "copy.deepcopy(model).double()", "copy.deepcopy(model).train()", "model.state_dict()", "lambda t: t", "make", "type"),
    *("fatnn.TernaryConfig()", "fatnn.TernaryConfig", "'net'", "pathlib.Path('net')", "pathlib.Path('.')", "'absent/x'", "'\\0'", "b'net'", "1 << 60", "True"),
    *("torch.utils.data.DataLoader([x[0], x[1]])", "iter([x])", "(x for _ in range(2))", "torch.jit.script(nn.ReLU())", "torch.fx.symbolic_trace(make())"),
    *("x.as_subclass(nn.Parameter)", "torch.nested.nested_tensor([x[0]])", "x.to(torch.complex64)", "torch.zeros([2, 3] + [1] * 60)", "x.expand(2, 3, 6, 6)[:, :, ::2]"),
    *("nn.LSTM(3, 3)", "nn.MultiheadAttention(4, 2)", "nn.TransformerEncoderLayer(8, 2)", "nn.Embedding(3, 3)", "nn.LazyLinear(3)", "nn.Conv3d(3, 3, 1)", "nn.ConvTranspose2d(3, 3, 1)"),
    *("range(3)", "Ellipsis", "np.float32(3)", "np.zeros(3, object)", "misaligned(x.numpy())", "x.numpy()[..., ::2]", "x.numpy().astype('>f4')", "print", "[[x]]", "'re:('"),
    *("torch.empty(1).expand(1 << 33, 3, 6, 6)", "torch.ones(1, 3, 1 << 14, 1)", "(make(),)", "{'re:.*': {'act': 'uint2'}}", "('0', '3')", "['re:.*']", "0", "False"),
)  # fmt: skip

#: Public calls: template, and the text of a right argument for each place.
PUBLIC: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fatnn.prepare({0}, {1}, {2})", ("make()", "fatnn.TernaryConfig()", "x")),
    ("fatnn.prepare(make(), fatnn.TernaryConfig(first='ternary', last='int8'), {0})", ("x",)),
    ("fatnn.convert({0}, {1}, {2})", ("model", "x", "'torch'")),
    ("fatnn.convert(model, {0})", ("x",)),
    ("fatnn.save({0}, {1})", ("net", "'other'")),
    ("fatnn.load({0}, {1})", ("'net'", "'torch'")),
    ("fatnn.load_numpy({0})", ("'net'",)),
    ("fatnn.verify({0}, {1}, {2})", ("model", "net", "x")),
    ("fatnn.verify(model, net, {0})", ("x",)),
    ("fatnn.summary({0}, {1})", ("net", "x")),
    ("fatnn.summary(model, {0})", ("x",)),
    ("fatnn.bench({0}, {1}, {2}, {3}, rounds=3)", ("net", "x", "()", "1")),
    ("fatnn.bench(net, x, (), 1, float_model={0}, rounds={1})", ("make().eval()", "3")),
    ("fatnn.param_groups({0}, weight_decay={1})", ("model", "1e-4")),
    ("fatnn.set_num_threads({0})", ("2",)),
    ("fatnn.TernaryConfig(weight={0}, act={1}, first={2}, last={3})", ("'fatnn'", "'ternary'", "'float'", "'int8'")),
    ("fatnn.TernaryConfig(skip={0}, overrides={1}, act_quantizer={2})", ("()", "{{}}", "None")),
    ("fatnn.TernaryConfig(overrides={{'re:.*': {{'weight': {0}, 'per_channel': {1}, 'act_range': {2}}}}})", ("'twn'", "True", "'half'")),
    ("fatnn.TernaryConfig().options_for({0})", ("'a'",)),
    ("fatnn.nn.calibrate({0}, {1})", ("model", "x")),
    ("fatnn.nn.TernaryConv2d({0}, {1}, {2})", ("3", "4", "3")),
    ("fatnn.nn.TernaryLinear({0}, {1})", ("3", "4")),
    ("net({0})", ("x",)),
    ("net({0})", ("x",)),
    ("net(x, {0})", ("x",)),
    ("net(x={0})", ("x",)),
    ("rust({0})", ("x",)),
    ("array({0})", ("x.numpy()",)),
    ("array({0}, {1})", ("x.numpy()", "x.numpy()")),
    ("torch.jit.trace(net, {0})", ("x",)),
    ("torch.export.export(net, {0})", ("(x,)",)),
    ("torch.jit.script(net)", ()),
    ("torch.fx.symbolic_trace(net)", ()),
    ("torch.vmap(net)(x[:, None])", ()),
    ("torch.func.grad(lambda t: net(t).sum())(x)", ()),
    ("net.load_state_dict({0})", ("net.state_dict()",)),
    ("net.to({0})", ("'cpu'",)),
    ("net.double()(x)", ()),
    ("net.half()(x)", ()),
    ("net.train({0})", ("False",)),
    ("net.run_observed({0}, {1})", ("(x,)", "lambda *a: None")),
    ("pickle.loads(pickle.dumps(net))(x)", ()),
    ("copy.deepcopy(rust)(x)", ()),
    ("str(net), net.report.to_json()", ()),
)  # fmt: skip

#: Contexts around public calls.
CONTEXTS = (
    "with torch.autocast('cpu', torch.bfloat16):",
    "with torch.inference_mode():",
    "with torch.enable_grad():",
    "with torch.device('meta'):",
    "with torch.no_grad():",
    "if torch.set_default_dtype(torch.float64) is None:",
    "if torch.set_default_dtype(torch.bfloat16) is None:",
    "if torch.set_flush_denormal(True) in (True, False):",
    "if torch.use_deterministic_algorithms(True) is None:",
    "if torch.set_num_threads(1) is None:",
)


class _Call:
    """Source of one trial: set-up, what is called, and what is known about the right answer."""

    def __init__(self, seed: int) -> None:
        r = random.Random(seed)
        self.rng = r
        self.changed: list[str] = []
        self.right = ""
        self.wrong_geometry = ""
        self.context = ""
        kind = r.random()
        if kind < 0.4:
            self._operator()
        elif kind < 0.65:
            self._core()
        else:
            self._public()

    def _start(self) -> dict[str, Any]:
        while True:
            g = _geometry(self.rng)
            two_bit = g["coding"] == "uint2"
            g["code_type"] = "two-bit" if two_bit else "ternary"
            # What is packed: half-range ternary codes -1, 0, 1 stand for 0, 1, 2.
            g["low"], g["high"] = (0, 4) if two_bit else (-1, 2)
            g["shift"] = "+ 1" if g["coding"] == "half" else ""
            spans = [(g["kernel"][i] - 1) * g["dilation"][i] + 1 for i in range(2)]
            if g["coding"] == "half" and any(g["padding"]):
                g["padding"] = [
                    0,
                    0,
                ]  # padding is level 0, code -1: not what conv2d pads with once shifted
            if all((g["h"], g["w"])[i] + 2 * g["padding"][i] >= spans[i] for i in range(2)):
                break
        self.setup = SETUP.format(**g)
        return g

    def _count(self) -> int:
        return self.rng.choice((0, 1, 1, 1, 1, 2, 3))

    def _operator(self) -> None:
        g = self._start()
        self.name = self.rng.choice(list(OPERATORS))
        arguments, right = OPERATORS[self.name]
        texts = {name: text.format(**g) for name, _, text in arguments}
        changed = self.rng.sample(arguments, min(self._count(), len(arguments)))
        for name, pool, _ in changed:
            form = self.rng.choice(POOLS[pool])
            old = texts[name] if texts[name] != "None" else "acc.float()"
            texts[name] = form.replace("{0}", old if pool == "t" else "{}")
            self.changed.append(name)
        self.right = right if not changed else ""
        if (
            self.name.startswith("conv")
            and {"kernel", "out_channels"} & set(self.changed)
            and "weight" not in self.changed
        ):
            self.wrong_geometry = (
                f"[{texts['out_channels']}, *({texts['kernel']})] != [{g['o']}, *{g['kernel']}]"
            )
        self.call = (
            f"torch.ops.fatnn_rs.{self.name}({', '.join(f'{k}={v}' for k, v in texts.items())})"
        )

    def _core(self) -> None:
        g = self._start()
        self.name = self.rng.choice(list(CORE))
        texts = [text.format(**g) for _, text in CORE[self.name]]
        places = list(enumerate(pool for pool, _ in CORE[self.name]))
        for index, pool in self.rng.sample(places, min(self._count(), len(places))):
            old = texts[index] if texts[index] != "None" else "acc.float().numpy()"
            texts[index] = self.rng.choice(POOLS[pool]).replace(
                "{0}", f"({old})" if pool in "at" else "{}"
            )
            self.changed.append(str(index))
        if self.name in (
            "fatnn.set_num_threads",
            "_core.set_num_threads",
            "_core.set_default_threads",
        ):
            texts = [text if text not in ("255", "1 << 16") else "4" for text in texts]
        self.call = f"{self.name}({', '.join(texts)})"

    def _public(self) -> None:
        r = self.rng
        ends = ("float", "int8", "ternary")
        self.setup = MODEL.replace("{last!r}", repr(r.choice(ends))).replace(
            "{first!r}", repr(r.choice(ends))
        )
        template, arguments = r.choice(PUBLIC)
        texts = [text.format() for text in arguments]
        if arguments:
            for index in r.sample(
                range(len(arguments)), min(r.choice((0, 1, 1, 1, 1, 2)), len(arguments))
            ):
                texts[index] = r.choice(THINGS)
                self.changed.append(texts[index])
        self.name = template.split("(")[0]
        self.call = template.format(*texts)
        if r.random() < 0.2:
            self.context = r.choice(CONTEXTS)
        self.public = True

    public = False

    def source(self) -> str:
        call = f"result = {self.call}"
        return (
            HEADER + self.setup + (f"{self.context}\n    {call}\n" if self.context else call + "\n")
        )


def _execute(text: str, space: dict[str, Any], name: str) -> None:
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), space)


_SCHEMA = re.compile(
    r"Expected a value of type|expected at most|missing value for argument|Unknown keyword argument|"
    r"Expected value for argument|Unable to cast|is missing value|Cannot convert|Could not infer dtype|"
    r"expected \d+ dims|Overflow when unpacking long|must be tuple of|cannot be converted|Unable to cast Python instance"
)


def _acceptable(call: _Call, error: BaseException) -> bool:
    """Whether a call may raise this: an error of the package, or one about a wrong signature."""
    if is_ours(error):
        return True
    if isinstance(error, RuntimeError) and re.search("DefaultCPUAllocator|bad_alloc", str(error)):
        return True  # torch's form of MemoryError
    if isinstance(error, TypeError) and "os.PathLike" in str(error):
        return True
    if (
        call.public
        and call.changed
        and call.name.startswith(("torch.", "fatnn.nn.Ternary", "net.to"))
    ):
        return isinstance(error, Exception)  # torch's own checks of its own arguments
    inner = traceback.extract_tb(error.__traceback__)[-1].filename if error.__traceback__ else ""
    own_frame = inner.startswith("<campaign")
    if isinstance(error, TypeError) and (own_frame or not call.public):
        return True
    if call.call.startswith("torch.ops.") and "_ops.py" in inner:
        if isinstance(error, NotImplementedError):
            return True  # a tensor of a backend that no op has
        return isinstance(error, (RuntimeError, ValueError, OverflowError)) and bool(
            _SCHEMA.search(str(error))
        )
    if (
        call.call.startswith("_core.")
        and isinstance(error, (OverflowError, ValueError))
        and own_frame
    ):
        return True
    # Torch's own message about the argument, before the package is called at all.
    return own_frame and not call.call.startswith(("_core.", "ops.", "array(", "fatnn."))


def _model_state(space: dict[str, Any]) -> list[str]:
    return [
        f"{name}:{type(module).__name__}:{module.training}"
        for name, module in space["model"].named_modules()
    ]


def trial(seed: int) -> Outcome:
    call = _Call(seed)
    space: dict[str, Any] = {}
    source = call.source()
    label = f"{call.name}({', '.join(call.changed)})"[:100]
    _execute(HEADER + call.setup, space, f"<campaign setup {seed}>")
    before = _model_state(space) if call.public else []
    arguments = f"result = {call.call}"
    text = f"{call.context}\n    {arguments}\n" if call.context else arguments + "\n"
    try:
        parts = call.call[call.call.index("(") :] if not call.public else ""
        if parts.startswith("(") and not call.public:
            # An argument that cannot be made at all says nothing about the call.
            _execute(
                f"dict{parts}" if "=" in parts else f"_ = [{parts[1:-1]}]",
                dict(space),
                "<campaign arguments>",
            )
    except BaseException:
        return Outcome(OK)
    try:
        _execute(text, space, f"<campaign {seed}>")
    except BaseException as error:
        if _acceptable(call, error):
            changed = (
                call.public and "prepare(model" not in call.call and before != _model_state(space)
            )
            if changed and "net.train" not in call.call:
                return Outcome(
                    FINDING, f"{label}: a refused call changes the model", described(error), source
                )
            return Outcome(REFUSED, f"{call.name}: {refusal(error)}"[:110])
        if call.public and _argument_fails(call, space):
            return Outcome(OK)
        last = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{described(error)}\nat {last.filename.split('/')[-1]}:{last.lineno}"
        what = f"{call.name}: raises {type(error).__name__}: {normal(error)}"
        return Outcome(FINDING, what, detail, source)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(False)
    return _judged(call, space, label, source)


def _argument_fails(call: _Call, space: dict[str, Any]) -> bool:
    """Whether making an argument is what fails."""
    for text in call.changed:
        try:
            lines = f"{call.context}\n    _ = {text}" if call.context else f"_ = {text}"
            _execute(lines, dict(space), "<campaign argument>")
        except BaseException:
            return True
    return False


def _judged(call: _Call, space: dict[str, Any], label: str, source: str) -> Outcome:
    """What is known about a call that returned."""
    result = space["result"]
    if call.right:
        expected = space[call.right].to(result.dtype)
        if expected.shape != result.shape or not torch.equal(expected, result):
            return Outcome(
                FINDING,
                f"{call.name}: wrong result of a right call",
                f"{expected}\n{result}"[:600],
                source,
            )
    if not call.call.startswith("torch.ops."):
        return Outcome(OK)
    check = source + f"assert not ({call.wrong_geometry})\n" if call.wrong_geometry else source
    try:
        if call.wrong_geometry and eval(call.wrong_geometry, space):
            return Outcome(
                FINDING,
                f"{call.name}: accepts a kernel or out_channels that is not the weight's",
                "",
                check,
            )
    except Exception:
        pass
    tensors = [t for t in _tensors(call, space) if isinstance(t, torch.Tensor)]
    if any(t.is_meta for t in tensors) and not result.is_meta:
        return Outcome(FINDING, f"{call.name}: a meta tensor among others gives memory", "", source)
    if result.is_meta and not all(t.is_meta for t in tensors):
        return Outcome(FINDING, f"{call.name}: a meta tensor among others is accepted", "", source)
    if result.is_meta:
        return Outcome(OK)
    again = eval(call.call, space)
    same = torch.equal(torch.nan_to_num(result.float()), torch.nan_to_num(again.float()))
    if "torch.rand" not in call.call and (result.shape != again.shape or not same):
        return Outcome(FINDING, f"{label}: two equal calls differ", "", source)
    return Outcome(OK)


def _tensors(call: _Call, space: dict[str, Any]) -> list[Any]:
    inside = call.call[call.call.index("(") :]
    try:
        return list(eval(f"dict{inside}", space).values())
    except Exception:
        return []


def reproduction(seed: int) -> str:
    return _Call(seed).source()

"""Tables of public functions and operators, and of wrong arguments to call them with."""

from __future__ import annotations

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
    \"\"\"Copy an array to an address one byte off.\"\"\"
    buffer = bytearray(array.nbytes + 1)
    buffer[1:] = array.tobytes()
    return np.frombuffer(buffer, array.dtype, offset=1).reshape(array.shape)

"""


#: Expressions that replace a tensor, ``{0}``.
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


#: Expressions that replace an array, ``{0}``.
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


#: Replacements for an argument, by the letter of its type in the tables below.
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


#: For each operator: arguments (name, pool, right value), and the expected result or "".
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


#: For functions of the extension module and of ``ops``: each argument's pool and right value.
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


#: Replacements for any argument of a public function.
ANY_ARGUMENTS = (
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


#: Public calls: a template, and a right argument for each place.
PUBLIC: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fatnn.prepare({0}, {1}, {2})", ("make()", "fatnn.TernaryConfig()", "x")),
    ("fatnn.prepare(make(), fatnn.TernaryConfig(first='ternary', last='int8'), {0})", ("x",)),
    ("fatnn.convert({0}, {1}, {2})", ("model", "x", "'torch'")),
    ("fatnn.convert(model, {0})", ("x",)),
    ("fatnn.convert(model, x, values={0}, calibration={1})", ("'int8'", "[x]")),
    ("fatnn.quantize_values({0}, {1}, calibration={2})", ("model", "x", "[x]")),
    ("fatnn.explain({0}, {1})", ("model", "x")),
    ("net.profile({0}, rounds={1})", ("x", "1")),
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


#: Statements in whose body a public call may run.
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

"""Forged files: saved networks with changed bytes, header, graph or tensors and a valid checksum."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from campaign.outcome import FINDING, OK, REFUSED, Outcome, described, is_ours, normal, refusal

#: Names of types and modes, which mean something in other places than they stand.
_WORDS = ("uint2", "binary", "half", "full", "ternary", "two-bit", "float32", "int64", "reflect")

#: Names of the saved networks that mutations start from; `make_bases` writes them.
BASES = (
    "resnet float",
    "resnet int8",
    "resnet uint2",
    "resnet binary",
    "mobile dorefa",
    "vgg",
    "functional",
    "one dimension",
    "mlp",
    "token mlp",
    "structured",
    "preactivation",
)
_FOLDER = ""

_SIZES = {
    "F32": 4,
    "I32": 4,
    "I64": 8,
    "I8": 1,
    "U8": 1,
    "F16": 2,
    "BF16": 2,
    "F64": 8,
    "BOOL": 1,
    "U64": 8,
    "I16": 2,
}
_KINDS = {"F32": "float32", "I32": "int32", "I64": "int64", "I8": "int8"}


def make_bases(folder: str) -> None:
    """Save the networks in a child: this process must not run torch's thread pool."""
    global _FOLDER
    _FOLDER = folder
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _write_bases(folder)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the networks that are to be forged could not be saved")


def _write_bases(folder: str) -> None:
    import warnings

    import torch

    import fatnn_rs
    from nets import MODELS, ready

    warnings.simplefilter("ignore")
    options: dict[str, dict[str, Any]] = {
        "resnet float": {"first": "float", "last": "float"},
        "resnet int8": {"first": "int8", "last": "int8"},
        "resnet uint2": {"act": "uint2", "first": "float"},
        "resnet binary": {"act": "binary", "weight": "binary"},
        "mobile dorefa": {"act": "uint2", "weight": "dorefa"},
    }

    class Structured(torch.nn.Module):
        """Two inputs, and outputs of every structure that a file holds."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.BatchNorm2d(5)
            self.head = torch.nn.Conv2d(5, 4, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
            z = self.head(self.norm(self.conv(x)).relu())
            return {"sum": (z + y, [z]), "rest": {"none": None, "number": 3}}

    pair = (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6))
    models: dict[str, Any] = {**MODELS, "structured": (Structured, pair, ())}
    for name in BASES:
        make, inputs, _ = models.get(name) or models[name.split(" ")[0]]
        torch.manual_seed(5)
        given = options.get(name, {})
        model = ready(make(), inputs, **given)
        fatnn_rs.save(fatnn_rs.convert(model, inputs), Path(folder) / f"{name}.safetensors")


@dataclass
class Forged:
    """A file taken apart."""

    header: dict[str, Any]
    entry: dict[str, Any]
    graph: Any
    #: Name → bytes.
    data: dict[str, bytes]
    graph_text: str | None = None
    raw: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Forged:
        content = Path(path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        entry = json.loads(header.pop("__metadata__")["fatnn-rs"])
        rest = content[8 + size :]
        data = {name: rest[slice(*info["data_offsets"])] for name, info in header.items()}
        return cls(header, entry, json.loads(entry["graph"]), data)

    def digest(self, text: str) -> str:
        """The checksum as the core makes it, where what it is made of can be read at all."""
        total = hashlib.sha256()

        def part(content: bytes) -> None:
            total.update(struct.pack("<Q", len(content)))
            total.update(content)

        part(text.encode("utf-8", "surrogatepass"))
        for name in sorted(self.header, key=lambda name: name.encode("utf-8", "surrogatepass")):
            info = self.header[name]
            kind, shape = _KINDS.get(info["dtype"], "?"), info["shape"]
            table = self.entry.get("tensors")
            if isinstance(table, dict) and name in table:
                kind, shape = (
                    table[name]["dtype"] if info["dtype"] == "U8" else kind,
                    table[name]["shape"],
                )
            part(name.encode("utf-8", "surrogatepass"))
            part(kind.encode())
            part(b"".join(struct.pack("<Q", size) for size in shape))
            part(self.data[name])
        return total.hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file; its checksum fits."""
        text = self.graph_text or json.dumps(self.graph, sort_keys=True, separators=(",", ":"))
        entry = {**self.entry, "graph": text}
        with contextlib.suppress(
            TypeError, KeyError, AttributeError, struct.error
        ):  # some files have no checksum that fits
            entry["sha256"] = self.digest(text)
        header: dict[str, Any] = {"__metadata__": {"fatnn-rs": json.dumps(entry)}}
        at, content = 0, b""
        for name, info in self.header.items():
            end = at + len(self.data[name])
            header[name] = {**info, "data_offsets": info.get("forged_offsets", [at, end])}
            header[name].pop("forged_offsets", None)
            content += self.data[name]
            at = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        whole = bytearray(struct.pack("<Q", len(encoded)) + encoded + content)
        for line in self.raw:
            exec(line, {"content": whole})
        Path(path).write_bytes(whole)


NUMBERS: tuple[Any, ...] = (
    *(
        -1,
        0,
        1,
        2,
        3,
        5,
        7,
        8,
        64,
        255,
        256,
        4096,
        65536,
        1 << 20,
        1 << 24,
        (1 << 31) - 1,
        1 << 31,
        1 << 32,
    ),
    *(
        1 << 53,
        (1 << 62),
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 1,
        1 << 64,
        -(1 << 31),
        -(1 << 63),
        10**30,
    ),
    *(0.5, -0.5, 1e-45, 1e-320, 1e308, -1e308, 1e38, float("nan"), float("inf"), -float("inf")),
)
OTHERS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        "x",
        "ü\x00",
        "a" * 5000,
        [],
        {},
        [[]],
        [None],
        [1],
        [1, 1, 1, 1],
        [0, 0],
    ),
    *([-1, -1], [1 << 40] * 4, [1] * 65, ["x"], [0.5, 0.5], [2000, 2000], {"a": 1}, {"value": "x"}),
    *(
        [0, 1 << 62],
        [1 << 32, 1 << 32],
        [3, 3, 3],
        [1 << 63, 2],
        [8192, 8192],
        [8192, 8192, 8192, 8192],
    ),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _paths(item, (*path, index))
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _subscripts(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in path)


class Mutator:
    """Lines of Python that change a :class:`Forged` called ``f``; each is run as it is found."""

    def __init__(self, forged: Forged, rng: random.Random, others: list[Any]) -> None:
        self.forged, self.rng, self.others = forged, rng, others
        self.lines: list[str] = []
        self.tags: list[str] = []

    def apply(self, tag: str, line: str) -> None:
        exec(
            line,
            {
                "f": self.forged,
                "copy": copy,
                "json": json,
                "os": os,
                "nan": float("nan"),
                "inf": float("inf"),
            },
        )
        self.lines.append(line)
        self.tags.append(tag)

    def value(self, old: Any) -> str:
        r = self.rng
        if r.random() < 0.25 and type(old) in (int, float):
            return repr(r.choice((old + 1, old - 1, old * 2, -old, old // 2 if old else 9)))
        if isinstance(old, list) and old and r.random() < 0.6:
            changed = list(old)
            action = r.randrange(5)
            if action == 0:
                changed.pop()
            elif action == 1:
                changed.append(changed[-1])
            elif action == 2:
                changed.reverse()
            else:
                changed[r.randrange(len(changed))] = r.choice(
                    NUMBERS if r.random() < 0.8 else OTHERS
                )
            return repr(changed)
        if type(old) in (int, float) and r.random() < 0.8:
            return repr(r.choice(NUMBERS))
        if isinstance(old, str) and r.random() < 0.5:
            return repr(r.choice(self.strings()))
        return repr(r.choice(NUMBERS + OTHERS))

    def strings(self) -> list[str]:
        nodes = self.forged.graph.get("nodes", [])
        names = [node.get("name") for node in nodes if isinstance(node, dict)]
        ops = [node["op"] for graph in self.others for node in graph["nodes"]]
        tensors = list(self.forged.header)
        return [str(name) for name in (*names, *sorted(set(ops)) * 2, *tensors, *_WORDS)]

    def graph(self) -> None:
        graph = self.forged.graph
        nodes = graph.get("nodes") if isinstance(graph, dict) else None
        paths = _paths(graph)
        places = {"attrs", "shape", "dtype", "outputs", "notes"}
        inner = [path for path in paths if places & set(path)]
        path = self.rng.choice(inner if inner and self.rng.random() < 0.6 else paths)
        action = self.rng.random()
        where = "f.graph" + _subscripts(path)
        tag = ".".join(str(key) for key in path if not isinstance(key, int))
        if action < 0.7:
            self.apply(tag, f"{where} = {self.value(_at(graph, path))}")
        elif action < 0.78:
            self.apply(f"no {tag}", f"del {where}")
        elif action < 0.84:
            other = self.rng.choice(paths)
            self.apply(
                f"{tag} from elsewhere", f"{where} = copy.deepcopy(f.graph{_subscripts(other)})"
            )
        elif isinstance(nodes, list) and len(nodes) > 1:
            i, j = self.rng.randrange(len(nodes)), self.rng.randrange(len(nodes))
            op = json.dumps(self.rng.choice(self.strings()))
            line = self.rng.choice(
                (
                    f"f.graph['nodes'].insert({i}, copy.deepcopy(f.graph['nodes'][{j}]))",
                    f"f.graph['nodes'][{i}], f.graph['nodes'][{j}] = f.graph['nodes'][{j}], f.graph['nodes'][{i}]",
                    f"f.graph['nodes'][{i}]['inputs'] = [f.graph['nodes'][{j}]['name']]",
                    f"f.graph['nodes'][{i}]['inputs'].append(f.graph['nodes'][{j}]['name'])",
                    f"f.graph['nodes'][{i}]['inputs'] = []",
                    f"f.graph['nodes'][{i}]['op'] = {op}",
                    f"f.graph['outputs'] = {{'value': f.graph['nodes'][{j}]['name']}}",
                    "f.graph['outputs'] = {'list': [{'value': n['name']} for n in f.graph['nodes']]}",
                    f"f.graph['nodes'][{i}]['name'] = f.graph['nodes'][{j}]['name']",
                    "f.graph['nodes'] = f.graph['nodes'] * 30",
                )
            )
            self.apply(line.split("]", 2)[-1].split("(")[0].strip()[:40] or "nodes", line)

    def nesting(self) -> None:
        depth = self.rng.choice((60, 200, 1000, 100000))
        form = self.rng.choice(
            (
                "'[' * {n} + ']' * {n}",
                "'{{\"a\":' * {n} + '1' + '}}' * {n}",
                "'{{\"tuple\":[' * {n} + ']}}' * {n}",
            )
        )
        place = self.rng.choice(("outputs", "notes", "nodes"))
        text = f"json.dumps(f.graph).replace('\"{place}\":', '\"{place}\": ' + {form.format(n=depth)} + ', \"was\":', 1)"
        self.apply(f"deep {place}", f"f.graph_text = {text}")

    def tensor(self) -> None:
        r, header = self.rng, self.forged.header
        name = r.choice(list(header))
        info, size = header[name], len(self.forged.data[name])
        where = f"f.header[{name!r}]"
        packed = name in (self.forged.entry.get("tensors") or {})
        shape = (self.forged.entry["tensors"][name] if packed else info)["shape"] or [1]
        new = r.choice(
            (
                list(reversed(shape)),
                [1, *shape],
                [*shape, 1],
                [1] * 65 + shape,
                [int(np.prod(shape))],
                [0, 1 << 62],
                [0],
                [],
                [*shape[:-1], shape[-1] + 1],
                [*shape[:-1], max(0, shape[-1] - 1)],
                [1 << 63, 2],
                [-1],
                [1 << 40],
            )
        )
        action = r.randrange(9)
        if action < 3:
            fits = not packed and all(isinstance(n, int) and 0 <= n < 1 << 30 for n in new)
            place = f"f.entry['tensors'][{name!r}]" if packed else where
            self.apply("tensor shape", f"{place}['shape'] = {new!r}")
            if fits and r.random() < 0.8:
                wanted = int(np.prod(new, dtype=object)) * _SIZES.get(info["dtype"], 1)
                if wanted < 1 << 22:
                    self.apply(
                        "fit",
                        f"f.data[{name!r}] = (f.data[{name!r}] * {wanted // max(size, 1) + 1})[:{wanted}]",
                    )
        elif action == 3 and packed and r.random() < 0.5:
            other = r.choice(("binary", "ternary", "two-bit", "int8", "float32", "codes", None, 3))
            self.apply("packed dtype", f"f.entry['tensors'][{name!r}]['dtype'] = {other!r}")
        elif action == 3:
            self.apply("tensor dtype", f"{where}['dtype'] = {r.choice(list(_SIZES))!r}")
        elif action == 4:
            fill = r.choice(
                (
                    "0000c07f",
                    "0000807f",
                    "000080ff",
                    "ffff7f7f",
                    "01000000",
                    "00000080",
                    "ffffffff",
                    "00000000",
                )
            )
            self.apply(
                "tensor data",
                f"f.data[{name!r}] = (bytes.fromhex({fill!r}) * {size // 4 + 1})[:{size}]",
            )
        elif action == 5:
            content = bytes(r.randrange(256) for _ in range(min(size, 64)))
            self.apply(
                "tensor data",
                f"f.data[{name!r}] = ({content!r} * {size // max(len(content), 1) + 1})[:{size}]",
            )
        elif action == 6:
            self.apply("no tensor", f"del f.header[{name!r}], f.data[{name!r}]")
        elif action == 7:
            other = r.choice(list(header))
            self.apply(
                "tensor swapped",
                f"{where}, f.data[{name!r}] = dict(f.header[{other!r}]), f.data[{other!r}]",
            )
        else:
            value = r.choice(([0, size], [size, 0], [0, 1 << 60], [-1, 5], [1, size], [0, 0]))
            self.apply("tensor offsets", f"{where}['forged_offsets'] = {value!r}")

    def meta(self) -> None:
        key = self.rng.choice(("version", "tensors", "graph"))
        if key == "graph":
            text = self.rng.choice(
                (
                    "",
                    "null",
                    "[]",
                    "{}",
                    "NaN",
                    "1e999",
                    '{"nodes": [], "outputs": {}}',
                    "{",
                    "\\ud800",
                )
            )
            self.apply("graph text", f"f.graph_text = {text!r} or ' '")
        else:
            self.apply(key, f"f.entry[{key!r}] = {self.value(self.forged.entry.get(key))}")

    def bytes(self) -> None:
        at = self.rng.choice((self.rng.randrange(64), self.rng.randrange(1 << 12)))
        line = self.rng.choice(
            (
                f"content[{at} % len(content)] ^= {1 << self.rng.randrange(8)}",
                f"del content[{at} % len(content):]",
                f"content[:8] = ({self.rng.choice((0, 1, 1 << 31, 1 << 62, (1 << 64) - 1))}).to_bytes(8, 'little')",
                f"content.extend(b'x' * {at})",
            )
        )
        self.apply("bytes", f"f.raw.append({line!r})")


def forge(seed: int, path: str) -> tuple[str, list[str], list[str]]:
    """Write the forged file of a seed; its base, the lines that change it, and what they change."""
    rng = random.Random(seed)
    graphs = [Forged.read(Path(_FOLDER) / f"{name}.safetensors").graph for name in BASES]
    base = rng.choice(BASES)
    forged = Forged.read(Path(_FOLDER) / f"{base}.safetensors")
    mutator = Mutator(forged, rng, graphs)
    actions: list[Callable[[], None]] = [
        mutator.graph,
        mutator.tensor,
        mutator.meta,
        mutator.nesting,
        mutator.bytes,
    ]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            rng.choices(actions, (12, 5, 0.7, 0.4, 0.7))[0]()
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            continue  # the mutation before took away what this one changes
    forged.write(path)
    return base, mutator.lines, mutator.tags


def script(seed: int, path: str = "forged.safetensors") -> str:
    """Python that writes the forged file of a seed: paste it where `tests` is on the path."""
    with tempfile.TemporaryDirectory() as folder:
        base, lines, _ = forge(seed, os.path.join(folder, "x"))
    shown = [line if len(line) < 400 else line[:400] + " …" for line in lines]
    return "\n".join(
        [
            "# With tests/ and python/ on PYTHONPATH:",
            "import copy, json, numpy as np, torch, fatnn_rs as fatnn",
            "from fatnn_rs.numpy_network import read_report",
            "from campaign import files",
            "nan, inf = float('nan'), float('inf')",
            "files.make_bases('/tmp')",
            f"f = files.Forged.read('{base}.safetensors')",
            *shown,
            f"f.write({path!r})",
            f"# or: files.forge({seed}, {path!r})",
        ]
    )


def _inputs(net: Any) -> list[np.ndarray[Any, Any]]:
    """Small inputs for what a loaded network says that it takes."""
    rng = np.random.default_rng(0)
    found = []
    for _, shape in net.inputs:
        sizes = [min(int(size), 40) for size in shape]
        found.append(rng.standard_normal(sizes).astype(np.float32))
    return found


#: Inputs of the bases as their graphs say, for networks loaded into torch.
def _graph_inputs(graph: Any) -> list[list[int]]:
    shapes = []
    try:
        for node in graph["nodes"]:
            if node["op"] == "input":
                shapes.append([min(int(size), 40) for size in node["shape"]])
    except Exception:
        return []
    return shapes if all(np.prod(shape) < 100_000 for shape in shapes) else []


def trial(seed: int) -> Outcome:
    import torch

    import fatnn_rs
    from fatnn_rs.numpy_network import read_report

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net")
        base, _, tags = forge(seed, path)
        graph = Forged.read(Path(_FOLDER) / f"{base}.safetensors").graph
        refusals = []

        def fault(stage: str, what: str, detail: str, show: str) -> Outcome:
            text = script(seed) + f"\npath = 'forged.safetensors'\n{show}\n"
            return Outcome(
                FINDING, f"{stage}: {what}", f"{detail}\nchanged: {', '.join(tags)}", text
            )

        def call(stage: str, show: str, function: Callable[[], Any]) -> Any:
            try:
                return function()
            except BaseException as error:
                if is_ours(error):
                    refusals.append(f"{stage}: {refusal(error)}")
                    return None
                raise _Fault(
                    fault(
                        stage,
                        f"raises {type(error).__name__}: {normal(error)}",
                        described(error),
                        show,
                    )
                ) from error

        try:
            net = call("load", "fatnn.load(path)", lambda: fatnn_rs.load(path))
            rust = call(
                "load rust",
                "fatnn.load(path, float_layers='rust')",
                lambda: fatnn_rs.load(path, float_layers="rust"),
            )
            array = call("load_numpy", "fatnn.load_numpy(path)", lambda: fatnn_rs.load_numpy(path))
            report = call("read_report", "read_report(path)", lambda: read_report(path))
            for name, one, show in (
                ("load", net, "fatnn.load(path)"),
                ("load_numpy", array, "fatnn.load_numpy(path)"),
            ):
                if one is not None:
                    call(f"{name} report", f"n = {show}\nprint(n.report, n.report.to_json(), repr(n))",
                         lambda one=one: (str(one.report), one.report.to_json(), repr(one)))  # fmt: skip
            if report is not None:
                call("read_report print", "r = read_report(path)\nprint(r, r.to_json())",
                     lambda: (str(report), report.to_json()))  # fmt: skip
            results: dict[str, Any] = {}
            if array is not None:
                given = call("inputs", "fatnn.load_numpy(path).inputs", lambda: _inputs(array))
                if given is not None and sum(x.size for x in given) < 200_000:
                    show = (
                        "n = fatnn.load_numpy(path)\n"
                        "n(*(np.random.default_rng(0).standard_normal(s).astype(np.float32) for _, s in n.inputs))"
                    )
                    results["numpy"] = call("load_numpy run", show, lambda: array(*given))
                    if rust is not None:
                        tensors = [torch.from_numpy(x) for x in given]
                        show = "n = fatnn.load(path, float_layers='rust')\nn(...)  # random, of the inputs' shapes"
                        results["rust"] = call("load rust run", show, lambda: rust(*tensors))
            shapes = _graph_inputs(graph)
            if net is not None and shapes:
                torch.manual_seed(0)
                tensors = [torch.randn(shape) for shape in shapes]
                made = f"torch.manual_seed(0)\nn(*(torch.randn(s) for s in {shapes}))"
                call("load run", f"n = fatnn.load(path)\n{made}", lambda: net(*tensors))
                call(
                    "save",
                    "fatnn.save(fatnn.load(path), path + '2')",
                    lambda: fatnn_rs.save(net, path + "2"),
                )
                call("summary", f"n = fatnn.load(path)\nfatnn.summary(n, tuple(torch.randn(s) for s in {shapes}))",
                     lambda: str(fatnn_rs.summary(net, tuple(tensors))))  # fmt: skip
            if results.get("numpy") is not None and results.get("rust") is not None:
                from torch.utils import _pytree as pytree

                from campaign.networks import difference

                pairs = zip(
                    pytree.tree_leaves(results["rust"]),
                    pytree.tree_leaves(results["numpy"]),
                    strict=False,
                )
                for one, two in pairs:
                    if isinstance(one, torch.Tensor) and isinstance(two, np.ndarray):
                        found = difference(one, torch.from_numpy(np.array(two)))
                        if found:
                            raise _Fault(
                                fault(
                                    "load_numpy run",
                                    "differs from load(float_layers='rust')",
                                    found,
                                    "",
                                )
                            )
        except _Fault as found:
            return found.outcome
    if refusals:
        return Outcome(REFUSED, refusals[0])
    return Outcome(OK)


class _Fault(Exception):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.what)
        self.outcome = outcome


def reproduction(seed: int) -> str:
    return (
        script(seed)
        + "\npath = 'forged.safetensors'\n"
        + "fatnn.load(path); fatnn.load(path, float_layers='rust'); n = fatnn.load_numpy(path); print(read_report(path))\n"
        + "n(*(np.zeros(s, np.float32) for _, s in n.inputs))\n"
    )

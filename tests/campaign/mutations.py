"""Random changes of a saved network: its graph, header, tensors and bytes."""

from __future__ import annotations

import copy
import json
import os
import random
from typing import Any

import numpy as np

from campaign.forged import SIZES, Forged

#: Names of types and modes; a mutation may put them into fields where they do not belong.
_WORDS = ("uint2", "binary", "half", "full", "ternary", "two-bit", "float32", "int64", "reflect")


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
    """Draws lines of Python that change ``f``, a :class:`Forged`, and runs each at once."""

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
                wanted = int(np.prod(new, dtype=object)) * SIZES.get(info["dtype"], 1)
                if wanted < 1 << 22:
                    self.apply(
                        "fit",
                        f"f.data[{name!r}] = (f.data[{name!r}] * {wanted // max(size, 1) + 1})[:{wanted}]",
                    )
        elif action == 3 and packed and r.random() < 0.5:
            other = r.choice(("binary", "ternary", "two-bit", "int8", "float32", "codes", None, 3))
            self.apply("packed dtype", f"f.entry['tensors'][{name!r}]['dtype'] = {other!r}")
        elif action == 3:
            self.apply("tensor dtype", f"{where}['dtype'] = {r.choice(list(SIZES))!r}")
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

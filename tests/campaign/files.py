"""Forged files: every loader must refuse a file or run its network."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from campaign.forged import BASES, Forged, base_path
from campaign.mutations import Mutator
from campaign.outcome import (
    FINDING,
    OK,
    REFUSED,
    Outcome,
    describe_error,
    is_documented_error,
    message_class,
    refusal_class,
)


def forge(seed: int, path: str) -> tuple[str, list[str], list[str]]:
    """Write the forged file of a seed; return its base, the changing lines and their tags."""
    rng = random.Random(seed)
    graphs = [Forged.read(base_path(name)).graph for name in BASES]
    base = rng.choice(BASES)
    forged = Forged.read(base_path(base))
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
            continue  # an earlier mutation removed what this one changes
    forged.write(path)
    return base, mutator.lines, mutator.tags


def script(seed: int, path: str = "forged.safetensors") -> str:
    """Return Python that writes the forged file of a seed; it needs tests/ on PYTHONPATH."""
    with tempfile.TemporaryDirectory() as folder:
        base, lines, _ = forge(seed, os.path.join(folder, "x"))
    shown = [line if len(line) < 400 else line[:400] + " …" for line in lines]
    return "\n".join(
        [
            "# With tests/ and python/ on PYTHONPATH:",
            "import copy, json, numpy as np, torch, fatnn_rs as fatnn",
            "from fatnn_rs.numpy_network import read_report",
            "from campaign import files, forged",
            "nan, inf = float('nan'), float('inf')",
            "import tempfile",
            "forged.make_bases(tempfile.mkdtemp())",
            f"f = forged.Forged.read(forged.base_path({base!r}))",
            *shown,
            f"f.write({path!r})",
            f"# or: files.forge({seed}, {path!r})",
        ]
    )


def _inputs(net: Any) -> list[np.ndarray[Any, Any]]:
    """Make small inputs of the shapes that a loaded network reports."""
    rng = np.random.default_rng(0)
    found = []
    for _, shape in net.inputs:
        sizes = [min(int(size), 40) for size in shape]
        found.append(rng.standard_normal(sizes).astype(np.float32))
    return found


def _graph_inputs(graph: Any) -> list[list[int]]:
    """Return small input shapes by the graph's nodes, for networks that torch runs."""
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
        graph = Forged.read(base_path(base)).graph
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
                if is_documented_error(error):
                    refusals.append(f"{stage}: {refusal_class(error)}")
                    return None
                raise _Fault(
                    fault(
                        stage,
                        f"raises {type(error).__name__}: {message_class(error)}",
                        describe_error(error),
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

                from campaign.compare import difference

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

"""Measure one network on every rung: convert it once per precision, pack it per kernel family."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fatnn_rs
from fatnn_rs.bench import networks
from fatnn_rs.bench.candidates import relative_error, use_threads
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import PEERS, arrays_of
from fatnn_rs.convert import TernaryNetwork, summary
from fatnn_rs.convert.api import convert_float
from fatnn_rs.errors import ConversionError
from fatnn_rs.machine import Machine
from fatnn_rs.nn.calibrate import calibrate
from fatnn_rs.nn.int8 import INT8_QAT_MAPPING
from fatnn_rs.operations import products_of
from ladder.measure import FLOATS, CaseCalls, Progress, TimedCall
from ladder.plan import NATIVE, write_json
from ladder.rungs import RUNGS, Rung
from ladder.shapes import LadderNetwork

__all__ = ["measure"]

#: Largest difference from the float model, relative to its largest output, due to rounding.
_ROUNDING = 1e-3


def measure(spec: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure one case; ``spec`` as for layers, and ``cache``: a directory for networks."""
    case = spec["case"]
    threads, cache = case["threads"], Path(spec["cache"])
    built = networks.build_float(case["name"])
    images = built.images(case["batch"])
    with torch.inference_mode():
        wanted = list(arrays_of(built.model(images)))
    builder = _NetworkBuilder(
        built, LadderNetwork(**spec["row"]), cache, spec["machine"]["commit"] or "unknown"
    )
    with tempfile.TemporaryDirectory(prefix="fatnn-ladder-") as folder, use_threads(threads):
        found = CaseCalls(0)
        for done, name in enumerate(spec["rungs"]):
            rung = RUNGS[name]
            progress(f"preparing {name}", done, len(spec["rungs"]))
            if rung.kind == "codes" and not rung.kernels():
                found.missing.append({"who": name, "reason": rung.why_missing()})
                continue
            net, facts = builder.make(rung)
            found.macs = summary(net, images).macs
            if rung.kind == "float32" and relative_error(net(images), wanted) > _ROUNDING:
                raise ConversionError(f"{name}: the engine's output differs from the float model's")
            if threads == 1 and case["isa"] == NATIVE:
                net(images)
                facts |= _sizes(net, Path(folder))
            facts["kernels"] = dict(Counter(kernel for _, kernel, _ in _products(net)))
            found.entries.append(TimedCall(name, "rung", FLOATS, "", _call(net, images), facts))
        flags = Machine.current().flags
        against = [name for name in spec["against"] if not PEERS[name].emulated(flags)]
        found.missing += [
            {
                "who": name,
                "reason": "this processor only emulates its precision, so only layers are measured",
            }
            for name in spec["against"]
            if name not in against
        ]
        found.add_peers(
            against, BenchTask(built.model, (images,), threads, Path(folder)), wanted, progress
        )
        with torch.inference_mode():
            return found.timed(spec["rounds"], threads, progress)


def _call(net: TernaryNetwork, images: Tensor) -> Any:
    last = images.contiguous(memory_format=torch.channels_last)
    return lambda: net(last)


class _NetworkBuilder:
    """Builds a network for each rung; keeps converted ones in files, because conversion is slow."""

    def __init__(
        self, built: networks.FloatNetwork, row: LadderNetwork, cache: Path, commit: str
    ) -> None:
        self.built, self.row, self.cache, self.commit = built, row, cache, commit

    def make(self, rung: Rung) -> tuple[TernaryNetwork, dict[str, Any]]:
        """Return the network, and how many of its codes were compared; all were equal."""
        if rung.kind == "float32":
            return convert_float(self.built.model, self.built.batch[:1]), {}
        if rung.kind == "int8":
            return self._int8(), {}
        whole, codes = self._codes(rung)
        net = TernaryNetwork(whole.graph, "rust", rung.family)
        x = self.built.batch[:1]
        net.dry_run((x,))
        outside = {node.name for node in net.graph.nodes if products_of(node.op) == "codes"}
        outside -= {node.name for segment in net.segments for node in segment.nodes}
        if outside:
            raise ConversionError(
                f"{self.built.name}: {', '.join(sorted(outside))} run outside the engine"
            )
        if relative_error(net(x), list(arrays_of(whole(x)))):
            raise ConversionError(
                f"{self.built.name}: outputs of the {rung.family} kernels differ from the others'"
            )
        return net, {"codes_verified": codes}

    def _int8(self) -> TernaryNetwork:
        """Convert the network with all convolutions and linear layers as int8 layers."""
        model = copy.deepcopy(self.built.model)
        for parent in list(model.modules()):
            for key, child in list(parent._modules.items()):
                if type(child) in INT8_QAT_MAPPING and child is not None:
                    parent._modules[key] = INT8_QAT_MAPPING[type(child)].from_float(child)
        calibrate(model, self.built.batch)
        net = fatnn_rs.convert(model.eval(), self.built.batch[:1], float_layers="rust")
        x = self.built.batch[:1]
        with torch.inference_mode():
            wanted = list(arrays_of(model(x)))
        if relative_error(net(x), wanted) > _ROUNDING:
            raise ConversionError(
                f"{self.built.name}: the engine's int8 output differs from the model's"
            )
        return net

    def _codes(self, rung: Rung) -> tuple[TernaryNetwork, int]:
        pair = "-".join(rung.config.values())
        file = self.cache / f"{self.built.name}-{self.row.ends}-{pair}-{self.commit}.safetensors"
        note = file.with_suffix(".json")
        if note.exists():
            return fatnn_rs.load(file, float_layers="rust"), int(
                json.loads(note.read_text(encoding="utf-8"))
            )
        options: dict[str, Any] = {**rung.config, "first": self.row.ends, "last": self.row.ends}
        config = fatnn_rs.TernaryConfig(**options)
        net, codes = networks.convert_and_verify(self.built, config, "rust")
        file.parent.mkdir(parents=True, exist_ok=True)
        fatnn_rs.save(net, file)
        write_json(note, codes)
        return net, codes


def _sizes(net: TernaryNetwork, folder: Path) -> dict[str, Any]:
    """Return bytes of the file, of packed weights, and of buffers for values."""
    file = folder / "network.safetensors"
    fatnn_rs.save(net, file)
    size = file.stat().st_size
    file.unlink()
    return {
        "file_bytes": size,
        "weight_bytes": sum(size for _, _, size in _products(net)),
        "buffer_bytes": sum(segment.network.buffer_bytes for segment in net.segments),
    }


def _products(net: TernaryNetwork) -> list[tuple[str, str, int]]:
    return [product for segment in net.segments for product in segment.network.products]

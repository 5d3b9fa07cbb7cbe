"""Saved networks taken apart and written again with a valid checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Names of the saved networks that are forged; ``make_bases`` writes them.
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


SIZES = {
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
    """Save the networks in a child, because the forking process must not start torch's threads."""
    global _FOLDER
    _FOLDER = folder
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _write_bases()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the networks that are to be forged could not be saved")


def base_path(name: str) -> Path:
    """Return the file of a saved network, a name of ``BASES``."""
    return Path(_FOLDER) / f"{name}.safetensors"


def _write_bases() -> None:
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
        """Two inputs, and outputs in every structure that a file can hold."""

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
        fatnn_rs.save(fatnn_rs.convert(model, inputs), base_path(name))


@dataclass
class Forged:
    """The parts of a file, which mutations change."""

    header: dict[str, Any]
    entry: dict[str, Any]
    graph: Any
    #: Bytes of each tensor by its name.
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
        """Compute the checksum as the core does; raises if a part cannot be read."""
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
        """Write the file with a valid checksum, if one can be computed."""
        text = self.graph_text or json.dumps(self.graph, sort_keys=True, separators=(",", ":"))
        entry = {**self.entry, "graph": text}
        # No checksum exists if a part of the header cannot be read.
        with contextlib.suppress(TypeError, KeyError, AttributeError, struct.error):
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

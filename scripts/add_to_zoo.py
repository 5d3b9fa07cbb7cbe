"""Add the network of a finished training run to the zoo of the package.

    python scripts/add_to_zoo.py RUN NAME --description TEXT --command COMMAND --limits TEXT

Writes ``NAME.safetensors`` and its card ``NAME.json`` to ``python/fatnn_rs/zoo/`` and, where they
are small, the float and the prepared weights. ``--float-from``: the run that trained the float
model, if it was another one.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from fatnn_rs.card import read_card

ZOO = Path(__file__).resolve().parent.parent / "python" / "fatnn_rs" / "zoo"
MAX_BYTES = 1_000_000
#: Of a model's weights, which few people need.
MAX_WEIGHTS_BYTES = 300_000


def main() -> None:
    """Parse the command line and copy the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    for name in ("--description", "--command", "--limits"):
        parser.add_argument(name, required=True)
    parser.add_argument("--float-from", type=Path)
    given = parser.parse_args()
    network = given.run / "net.safetensors"
    if network.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{network} has more than {MAX_BYTES:,} bytes")
    card = replace(
        read_card(given.run / "net.json"),
        description=given.description,
        command=given.command,
        limits=given.limits,
    )
    shutil.copyfile(network, ZOO / f"{given.name}.safetensors")
    (ZOO / f"{given.name}.json").write_text(card.to_json(), encoding="utf-8")
    for phase, run in (("float", given.float_from or given.run), ("ternary", given.run)):
        weights = torch.load(run / f"{phase}.pt", map_location="cpu", weights_only=True)["model"]
        file = ZOO / f"{given.name}.{phase}.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
        if file.stat().st_size > MAX_WEIGHTS_BYTES:
            print(f"{phase} weights left out: {file.stat().st_size:,} bytes")
            file.unlink()


if __name__ == "__main__":
    main()

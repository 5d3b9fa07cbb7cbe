"""Add the network of a finished training run to the zoo of the package.

    python scripts/add_to_zoo.py RUN NAME --description TEXT --command COMMAND --limits TEXT

Writes ``NAME.safetensors`` and its card ``NAME.json`` to ``python/fatnn_rs/zoo/`` and, where they
are small, the float and the prepared weights. ``--float-from``: the run that trained the float
model, if it was another one.
"""

from __future__ import annotations

import argparse
import re
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from fatnn_rs.card import card_file, read_card
from fatnn_rs.train.run import read_state

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
    runs = {"float": given.float_from or given.run, "ternary": given.run}
    files = [network, card_file(network), *(runs[name] / f"{name}.pt" for name in runs)]
    for file in files:
        if not file.is_file():
            parser.error(f"{file} is missing; give a finished run, and its float one if it had one")
    card = replace(
        read_card(card_file(network)),
        description=given.description,
        command=given.command,
        limits=given.limits,
    )
    reasons = {
        "name: expected small letters, digits and '-'": not re.fullmatch("[a-z0-9-]+", given.name),
        "--description, --command and --limits: give a text": not all(
            text.strip() for text in (given.description, given.command, given.limits)
        ),
        f"{network} has more than {MAX_BYTES:,} bytes": network.stat().st_size > MAX_BYTES,
        "the run held training images out; train on all of them": card.recipe["holdout"],
        "the run has no commit, or files differed from it; train from a clean checkout": not str(
            card.machine.get("commit") or "+"
        ).isalnum(),
    }
    for reason, applies in reasons.items():
        if applies:
            parser.error(reason)
    shutil.copyfile(network, ZOO / f"{given.name}.safetensors")
    card.write(ZOO / f"{given.name}.json")
    for phase, run in runs.items():
        weights = read_state(run / f"{phase}.pt")["model"]
        file = ZOO / f"{given.name}.{phase}.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
        if file.stat().st_size > MAX_WEIGHTS_BYTES:
            print(f"{phase} weights left out: {file.stat().st_size:,} bytes")
            file.unlink()


if __name__ == "__main__":
    main()

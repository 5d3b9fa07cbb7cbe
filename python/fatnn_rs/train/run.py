"""The directory of a training run. Files are replaced atomically, so a kill loses nothing.

=====================  ==================================================================
``run.json``           recipe, seed, threads and processes; another run is refused
``checkpoint.pt``      state of the training
``float.pt``           the float model's ``state_dict`` after its phase
``ternary.pt``         the prepared model's ``state_dict`` after its phase
``log.jsonl``          one line per epoch
``net.safetensors``    the converted network
``net.json``           its card: classes, preprocessing, accuracy, training
``result.json``        written at the end: accuracies, codes compared, machine, versions,
                       seconds since the last start
``tensorboard/``       curves, if TensorBoard is installed
=====================  ==================================================================
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fatnn_rs.card import Card
from fatnn_rs.errors import ConfigError, FormatError
from fatnn_rs.train.recipe import Recipe, parse_recipe

__all__ = ["Run", "identity", "load_weights", "read_state"]


def identity(
    recipe: Recipe, seed: int, processes: int, threads: int, float_from: Path | None
) -> dict[str, Any]:
    """Return everything that decides a run's weights, as plain data."""
    return {
        "recipe": {**recipe.to_json(), "description": ""},
        "seed": seed,
        "processes": processes,
        "threads": threads,
        "float_from": str(float_from) if float_from else None,
    }


class Run:
    """A run's directory.

    Parameters
    ----------
    folder
        The directory; created if missing.
    identity
        Result of :func:`identity`.
    write
        Whether this process may create and write files.

    Raises
    ------
    ConfigError
        The directory holds a run with another identity.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], write: bool = True) -> None:
        self.folder, self.identity = folder, identity
        self._is_new = False
        if write:
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.json"
        if path.exists():
            before = _read_identity(path)
            if before != identity:
                raise ConfigError(
                    f"{folder} holds a run with other settings "
                    f"({_first_difference(before, identity)}); give the same ones "
                    "again, another --out, or remove that folder"
                )
        elif write:
            _write_atomically(path, (json.dumps(identity, indent=2) + "\n").encode())
            self._is_new = True

    def release(self) -> None:
        """Let a run with other settings use the directory, if this one has begun nothing."""
        if self._is_new:
            (self.folder / "run.json").unlink(missing_ok=True)

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of the finished run; None before."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found["recipe"], found["seed"]
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path} does not hold the result of a run ({type(error).__name__}: {error}); "
                "remove it to finish the run again, or give another --out"
            ) from error
        return found

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        _write_atomically(
            self.folder / "result.json", (json.dumps(result, indent=2) + "\n").encode()
        )

    def write_card(self, card: Card) -> None:
        """Write the card of the converted network."""
        _write_atomically(self.folder / "net.json", card.to_json().encode())

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write ``name``.pt atomically."""
        path = self.folder / f"{name}.pt"
        temporary = path.with_suffix(".pt.part")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, name: str) -> dict[str, Any] | None:
        """Read ``name``.pt; None if there is none."""
        path = self.folder / f"{name}.pt"
        return read_state(path) if path.exists() else None

    def discard(self, name: str) -> None:
        """Remove ``name``.pt."""
        (self.folder / f"{name}.pt").unlink(missing_ok=True)

    def log(self, lines: list[dict[str, Any]]) -> None:
        """Rewrite the log, so that epochs repeated after a resumption appear once."""
        _write_atomically(
            self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode()
        )


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Fill in options that recipes did not have when the run began.
        recipe = parse_recipe(found["recipe"], str(path)).to_json()
    except (ValueError, KeyError, TypeError) as error:  # ConfigError is a ValueError
        raise FormatError(
            f"{path} does not describe a run of this version ({error}); give another --out"
        ) from error
    return {**found, "recipe": {**recipe, "description": ""}}


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data, without running code from it.

    Raises
    ------
    FormatError
        Not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load may raise anything.
        raise FormatError(
            f"{path}: expected a PyTorch checkpoint: {error}".split("\n")[0]
        ) from error
    if not isinstance(state, dict):
        raise FormatError(
            f"{path}: expected a PyTorch checkpoint with a dict in it, got {type(state).__name__}"
        )
    return state


def load_weights(model: nn.Module, state: dict[str, Any], source: Path) -> None:
    """Load a model's weights from a run's checkpoint, or from a bare ``state_dict``.

    Raises
    ------
    ConfigError
        They do not fit the model; the message names ``source``.
    """
    inner = state.get("model")
    try:
        model.load_state_dict(inner if isinstance(inner, dict) else state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{source} does not fit the recipe's model: {text[:300]}") from error


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _first_difference(before: Any, now: Any, path: str = "") -> str:
    """Describe the first value in which two identities differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in (*before, *(key for key in now if key not in before)):
            if before.get(key) != now.get(key):
                return _first_difference(
                    before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
                )
    return f"{path}: {before!r} there, {now!r} now"

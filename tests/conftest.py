"""Options that select long tests, and fixtures that every test may use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("nets", "training")

#: ``--long=sample`` runs one long test in this many.
SAMPLE_ONE_IN = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        choices=("none", "sample", "all"),
        default="none",
        help="which tests marked long run: none, a sample chosen by --sample-seed, or all",
    )
    parser.addoption("--sample-seed", default="0", help="chooses the sample of --long=sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long tests that ``--long`` does not ask for."""
    wanted, seed = config.getoption("--long"), config.getoption("--sample-seed")

    def runs(item: pytest.Item) -> bool:
        if wanted == "all" or item.get_closest_marker("long") is None:
            return True
        digest = hashlib.sha256(f"{seed} {item.nodeid}".encode()).digest()
        return wanted == "sample" and digest[0] % SAMPLE_ONE_IN == 0

    left_out = [item for item in items if not runs(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs(item)]


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Restore the thread counts of torch and of fatnn-rs after the test, also if it fails."""
    import torch

    import fatnn_rs

    of_torch, of_core = torch.get_num_threads(), fatnn_rs.get_num_threads()
    yield
    torch.set_num_threads(of_torch)
    if fatnn_rs.get_num_threads() != of_core:  # once set, it no longer follows torch's
        fatnn_rs.set_num_threads(of_core)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with CIFAR-10 and Fashion-MNIST as torchvision stores them.

    FATNN_DATA names it; otherwise it is unpacked from a copy next to the checkout.
    """
    given = os.environ.get("FATNN_DATA")
    if given:
        return Path(given)
    unpack = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"
    if not unpack.exists():
        pytest.skip(
            "no data sets here: set FATNN_DATA to a folder that holds CIFAR-10 and Fashion-MNIST"
        )
    folder = tmp_path_factory.mktemp("data")
    subprocess.run(
        [sys.executable, str(unpack), str(folder)],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a training and a test set of three classes with three pictures each."""
    from training import make_pictures

    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder)
    return folder

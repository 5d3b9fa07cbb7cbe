"""Where real data are for the tests that use them, and which of the long tests run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Of the long tests, a sample has one in this many.
ONE_IN = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        choices=("none", "sample", "all"),
        default="none",
        help="which tests marked long run: none, a sample chosen by --sample-seed, or all",
    )
    parser.addoption("--sample-seed", default="0", help="chooses the sample of --long=sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests that were not asked for."""
    wanted, seed = config.getoption("--long"), config.getoption("--sample-seed")

    def runs(item: pytest.Item) -> bool:
        if wanted == "all" or item.get_closest_marker("long") is None:
            return True
        digest = hashlib.sha256(f"{seed} {item.nodeid}".encode()).digest()
        return wanted == "sample" and digest[0] % ONE_IN == 0

    left_out = [item for item in items if not runs(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs(item)]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 and Fashion-MNIST as torchvision stores them.

    It is FATNN_DATA, or a folder unpacked from a copy next to the checkout.
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

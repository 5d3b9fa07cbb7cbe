"""Where real data are for the tests that use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 and Fashion-MNIST as torchvision lays them out: FATNN_DATA's, or one unpacked from a copy
    beside the checkout."""
    given = os.environ.get("FATNN_DATA")
    if given:
        return Path(given)
    unpack = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"
    if not unpack.exists():
        pytest.skip("no data sets here: set FATNN_DATA to a folder that holds CIFAR-10 and Fashion-MNIST")
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, str(unpack), str(folder)], check=True, timeout=120, stdout=subprocess.DEVNULL)
    return folder

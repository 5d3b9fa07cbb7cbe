"""The examples of docs/integrations.md run as printed, and no code differs afterwards."""

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "integrations.md"
EXAMPLES = dict(
    re.findall(r"^## (.+?)\n.*?```python\n(.+?)```", PAGE.read_text("utf-8"), re.M | re.S)
)
NEEDS = {
    "Lightning": "lightning",
    "accelerate": "accelerate",
    "Hugging Face's Trainer": "transformers",
    "timm": "timm",
    "Detection models": "torchvision",
    "Arguments of any structure": "torch",
}


def test_every_example_is_known() -> None:
    assert EXAMPLES.keys() == NEEDS.keys()


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Reset accelerate's process-wide state, which other tests initialise with other options."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("title", NEEDS)
def test_example(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS[title], reason=f"the extra 'dev' has {NEEDS[title]}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    code = compile(EXAMPLES[title], str(PAGE), "exec")
    # Trainers warn of the machine (few workers, no GPU) and of deprecations in their own code.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names)
    if title == "Detection models":
        assert len(names["net"].segments) > 0
        for one, other in zip(names["before"], names["after"], strict=True):
            assert len(one["boxes"]) > 0
            assert all(torch.equal(one[key], other[key]) for key in one)
        return
    report = names["report"]
    assert report.codes_total > 0
    assert report.codes_different == 0, report

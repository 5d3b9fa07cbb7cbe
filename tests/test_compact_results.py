"""``scripts/compact_results.py``, which makes committed results small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a temporary directory instead of the checkout."""
    spec = importlib.util.spec_from_file_location(
        "compact_results", ROOT / "scripts" / "compact_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_floats_in_json_are_rounded_and_integers_are_kept(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    file, page = folder / "one.json", folder / "one.md"
    file.write_text(
        json.dumps(
            {"codes": 1843200123, "ms": [0.000123456, 12.34567], "deep": [{"a": {"b": 1e30 / 3}}]}
        )
    )
    page.write_text("1.234567\n")
    assert script.main(["--check"]) == 1
    assert "not compact: docs/results/one.json" in capsys.readouterr().out
    assert script.main([]) == 0
    assert json.loads(file.read_text()) == {
        "codes": 1843200123,
        "ms": [0.0001235, 12.35],
        "deep": [{"a": {"b": 3.333e29}}],
    }
    assert '"ms":[\n0.0001235,\n12.35\n]' in file.read_text()
    assert page.read_text() == "1.234567\n"
    before = file.read_bytes()
    assert script.main([]) == 0
    assert file.read_bytes() == before
    assert script.main(["--check"]) == 0


def test_times_of_layers_are_not_kept(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "benches" / "results" / "cpu"
    folder.mkdir(parents=True)
    file = folder / "2026-01-01-networks.json"
    file.write_text(json.dumps([{"network": "a", "rows": [{"name": "x"}], "layers": [{"ms": 1}]}]))
    assert script.main([]) == 0
    assert json.loads(file.read_text()) == [{"network": "a", "rows": [{"name": "x"}]}]


def test_pictures_get_a_palette_and_a_second_run_changes_nothing(
    script: ModuleType, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "benches" / "results" / "cpu"
    folder.mkdir(parents=True)
    file = folder / "2026-01-01-ladder.png"
    image.effect_mandelbrot((64, 64), (-2, -2, 2, 2), 50).convert("RGB").save(file)
    assert script.main([]) == 0
    before = file.read_bytes()
    with image.open(file) as picture:
        assert picture.mode == "P"
    assert script.main([]) == 0
    assert file.read_bytes() == before

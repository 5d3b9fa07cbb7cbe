"""The precision ladder: its cases, and one small ladder from start to report."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ladder.__main__
from fatnn_rs import ConfigError, FormatError, _core, machine
from ladder import NETWORKS, RUNGS, SHAPES, LadderNetwork, LayerShape, command, plan
from ladder.collect import figure, inside_network
from ladder.compare import compare
from ladder.plan import BenchCase, LadderOptions
from ladder.report import markdown

TINY = LayerShape("3×3, 20 channels, 6×6", 20, 24, 6, 3)


OPTIONS = (
    *(
        "--layers",
        "tiny",
        "--networks",
        "digits",
        "--batch",
        "1",
        "--threads",
        "1",
        "--isa",
        "native,scalar",
    ),
    *("--against", "torch", "--rounds", "3", "--processes", "1"),
)


def call_ladder(*options: str) -> int:
    try:
        code: Any = ladder.__main__.main(options)
    except SystemExit as leaving:
        code = leaving.code
    return int(code or 0)


@pytest.fixture(scope="module", autouse=True)
def _test_shape_and_network() -> Iterator[None]:
    """Add a small layer and a small network to the tables for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", TINY)
        patch.setitem(NETWORKS, "digits", LadderNetwork("float", "made-up"))
        yield


class InterruptedLadder:
    """A ladder that was interrupted after its first case and resumed, and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.measured = folder, list[BenchCase]()
        real = command._run

        def run(state: Any, case: BenchCase, *arguments: Any) -> str | None:
            if len(self.measured) == 1 and self.interruptions_left:
                self.interruptions_left -= 1
                raise KeyboardInterrupt
            reason = real(state, case, *arguments)
            self.measured.append(case)
            return reason

        self.interruptions_left = 1
        rows = [
            {"name": row.accuracy, "mean": 0.9, "std": 0.01}
            for row in RUNGS.values()
            if row.accuracy
        ]
        (folder / "made-up.json").write_text(json.dumps({"rows": rows}))
        counts = {
            "layer": "tiny",
            "kernel": "k",
            "act": "half",
            "weights": "ternary",
            "instructions_per_mac": 0.125,
        }
        reason = {"kernel": "other", "reason": "not here"}
        (folder / "counts").write_text(
            json.dumps({"valgrind": "v", "rows": [counts], "not_counted": [reason]})
        )
        self.options = (
            *(
                *OPTIONS,
                "--out",
                str(folder / "out"),
                "--json",
                str(folder / "new" / "ladder.json"),
            ),
            *("--instructions", str(folder / "counts"), "--accuracies", str(folder)),
            *("--results", str(folder / "results")),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "_run", run)
            # Typer exits with 130 after an interrupt.
            assert call_ladder(*self.options) != 0
            self.measured_before = list(self.measured)
            assert call_ladder(*self.options) == 0
        self.file = folder / "new" / "ladder.json"
        self.results = json.loads(self.file.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> InterruptedLadder:
    pytest.importorskip("matplotlib")
    return InterruptedLadder(tmp_path_factory.mktemp("ladder"))


def test_interrupted_ladder_resumes_with_the_next_case(finished: InterruptedLadder) -> None:
    assert [str(case) for case in finished.measured_before] == ["tiny, batch 1, threads 1, native"]
    assert [str(case) for case in finished.measured] == [
        "tiny, batch 1, threads 1, native",
        "digits, batch 1, threads 1, native",
        "tiny, batch 1, threads 1, scalar",
        "digits, batch 1, threads 1, scalar",
    ]


def test_finished_ladder_measures_nothing_again(
    finished: InterruptedLadder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        command, "_run", lambda *arguments: pytest.fail("a case was measured again")
    )
    assert call_ladder(*finished.options[:-2]) == 0
    # Only the time of day differs.
    texts = [
        re.sub(r"T\d\d:\d\d:\d\d", "", text.strip())
        for text in (capsys.readouterr().out, markdown(finished.results))
    ]
    assert texts[0] == texts[1]


def test_every_rung_is_measured_or_listed_with_a_reason(finished: InterruptedLadder) -> None:
    assert finished.results["cases"]
    for case in finished.results["cases"]:
        capped = case["isa"] != "native"
        names = {row["who"] for row in case["figures"]} | {row["who"] for row in case["missing"]}
        assert names == {name for name, rung in RUNGS.items() if rung.capped or not capped} | (
            set() if capped else {"torch"}
        )
        assert not case["failed"]
        for row in case["figures"]:
            times = row["milliseconds"]
            assert 0 < times["low"] <= times["median"] <= times["high"]
            if (
                row["kind"] == "rung"
                and RUNGS[row["who"]].kind == "codes"
                and case["kind"] == "layer"
            ):
                assert set(row["variants"] or [row["variant"]]) == set(
                    _kernels(row["who"], case["isa"])
                )
        for row in case["missing"]:
            assert RUNGS[row["who"]].family in row["reason"]


def _kernels(who: str, isa: str) -> list[str]:
    """Return the kernels of a rung, on this CPU or capped at scalar."""
    kernels = RUNGS[who].kernels()
    return (
        kernels
        if isa == "native"
        else [name for name in machine.Machine.current().kernels if _is_scalar_kernel(name, who)]
    )


def _is_scalar_kernel(name: str, who: str) -> bool:
    return name == f"generic-{RUNGS[who].family}-scalar"


def test_layers_are_timed_on_codes_and_floats_and_networks_list_their_facts(
    finished: InterruptedLadder,
) -> None:
    by_slug = {(case["name"], case["isa"]): case for case in finished.results["cases"]}
    layer, network = by_slug["tiny", "native"], by_slug["digits", "native"]
    assert layer["macs"] == 36 * 20 * 24 * 9
    for who in ("ternary-popcount", "ternary-table", "dorefa-popcount", "binary"):
        assert figure(layer, who, "codes") is not None
        assert figure(layer, who, "floats") is not None
        facts = inside_network(network, who)["facts"]  # type: ignore[index]
        assert facts["codes_verified"] > 0
        assert 0 < facts["file_bytes"] < 884 * 1024
        assert facts["weight_bytes"] > 0
        assert facts["buffer_bytes"] > 0
        family = RUNGS[who].family
        assert all(family in kernel or kernel == "gemm-f32" for kernel in facts["kernels"])
    assert figure(layer, "int8", "codes") is None
    assert figure(layer, "float32", "floats")["over_float32"]["median"] == 1  # type: ignore[index]
    best = {_core.int8_kernel_for(linear) for linear in (False, True)}
    assert inside_network(network, "int8")["facts"]["kernels"].keys() == best  # type: ignore[index]


def test_report_json_and_plots_are_written(finished: InterruptedLadder) -> None:
    place = finished.folder / "results" / machine.Machine.current().slug
    assert sorted(re.sub(r"^[\d-]{10}", "", path.name) for path in place.iterdir()) == [
        *("-ladder-accuracy.png", "-ladder.json", "-ladder.md", "-ladder.png"),
    ]
    assert json.loads(next(place.glob("*.json")).read_text()) == finished.results
    # The command names instruction sets unless they are all that this CPU has.
    text = next(place.glob("*.md")).read_text().replace(" --isa native,scalar", "")
    tiers = "scalar" if RUNGS["ternary-matrix"].kernels() else "native, scalar"
    for part in (
        *("## Theory and practice", "3×3, 20 channels, 6×6", "digits, batch 1"),
        *("| scalar |", "4N"),
        *(
            "0.1250",
            "other (not here)",
            f"matrix unit ({tiers}): no matrix kernel here",
            "-ladder-accuracy.png",
        ),
        "python -m ladder --layers tiny --networks digits --batch 1 --threads 1 --against torch "
        "--rounds 3 --processes 1",
    ):
        assert part in text, part


def test_failing_case_is_named_and_the_others_are_measured(
    finished: InterruptedLadder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "broken", LayerShape("no channels", 0, 8))
    options = list(finished.options[: finished.options.index("--json")])
    for option, value in (("--layers", "broken,tiny"), ("--networks", "none"), ("--isa", "native")):
        options[options.index(option) + 1] = value
    assert call_ladder(*options) == 1
    captured = capsys.readouterr()
    assert "**failed**: broken, batch 1, threads 1, native: " in captured.out
    assert "### 3×3, 20 channels, 6×6" in captured.out
    assert captured.err.splitlines()[-1].startswith(
        "ladder: not measured: broken, batch 1, threads 1, native; the rep"
    )


def test_compare_reports_figures_outside_the_noise(
    finished: InterruptedLadder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(finished.results)
    row = other["cases"][0]["figures"][-1]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    assert call_ladder("--compare", str(finished.file), str(path)) == 0
    row["milliseconds"].update(
        {name: 1e3 * row["milliseconds"][name] for name in ("low", "median", "high")}
    )
    path.write_text(json.dumps(other))
    assert call_ladder("--compare", str(finished.file), str(path)) == 1
    captured = capsys.readouterr()
    assert f"tiny b1 t1 native: {row['who']}, {row['way']}" in captured.out
    assert "1 times and 0 ratios" in captured.out
    assert "do not agree" in captured.err
    row["over_float32"].update(
        {name: 1e3 * row["over_float32"][name] for name in ("low", "median", "high")}
    )
    path.write_text(json.dumps(other))
    found = compare(finished.file, path)
    assert found.ratios == 1
    assert len(found.different) == 2
    assert "1 times and 1 ratios" in str(found)
    del other["cases"][0]
    path.write_text(json.dumps(other))
    assert not compare(finished.file, path).agrees
    assert "in one only" in str(compare(finished.file, path))
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(FormatError, match="expected the JSON file"):
            compare(finished.file, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "5x5"), "layers: unknown name '5x5'; known are: 3x3-64-56"),
        (("--networks", "alexnet"), "networks: unknown name 'alexnet'; known are: resnet18"),
        (
            ("--rungs", "int4"),
            "rungs: unknown name 'int4'; known are: float32, int8, dorefa-popcount",
        ),
        (("--against", "tflite"), "against: unknown name 'tflite'; known are: torch, torch-bf16"),
        (("--isa", "sse2"), "isa: unknown name 'sse2'; known are: native"),
        (("--threads", "0"), "threads must be at least 1, got 0"),
        (("--batch", "one"), "--batch: expected whole numbers separated by commas, got 'one'"),
        (("--batch", ","), "batch: expected at least one value"),
        (
            ("--layers", "none", "--networks", "none"),
            "layers and networks: expected at least one of either",
        ),
    ],
)
def test_wrong_options_print_one_clear_error(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_ladder(*options, "--out", str(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ladder: {message}")


def test_wrong_file_of_instruction_counts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "counts"
    for text in ("no JSON", "{}"):
        path.write_text(text)
        assert call_ladder(*OPTIONS, "--out", str(tmp_path), "--instructions", str(path)) == 1
        assert (
            "expected the output of `cargo bench --package fatnn --bench instructions`"
            in capsys.readouterr().err
        )


def test_cases_cover_every_combination_and_capped_isas_once() -> None:
    options = LadderOptions(
        layers=("tiny", "fc-4096"), networks=("digits",), batches=(1, 8), threads=(1, 2)
    )
    cases = list(plan.cases(options))
    assert len(set(cases)) == len(cases)
    native = [case for case in cases if case.isa == plan.NATIVE]
    assert {(case.batch, case.threads) for case in native if case.name != "fc-4096"} == {
        (1, 1),
        (1, 2),
        (8, 1),
        (8, 2),
    }
    assert {case.batch for case in native if case.name == "fc-4096"} == {1, 16}
    assert {case.isa for case in cases} == set(plan.available_isas())
    assert plan.available_isas()[0] == plan.NATIVE
    assert plan.available_isas()[-1] == "scalar"
    capped = [case for case in cases if case.isa == "scalar"]
    assert [(case.name, case.batch, case.threads) for case in capped] == [
        *(("tiny", 1, 1), ("fc-4096", 1, 1), ("digits", 1, 1)),
    ]


def test_command_line_repeats_the_options() -> None:
    assert command.command_line(LadderOptions()).startswith("python -m ladder")
    options = LadderOptions(networks=(), rungs=("int8",), rounds=5)
    words = command.command_line(options)
    assert "--networks none" in words
    assert "--rungs int8" in words
    assert words.endswith("--rounds 5")
    with pytest.raises(ConfigError, match="rounds must be at least 3, got 2"):
        LadderOptions(rounds=2)

"""The precision ladder: its tables, its figures, and one small ladder from end to end."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fatnn_rs
import ladder.__main__
from fatnn_rs import ConfigError, FormatError, InputError, UnsupportedError, _core, machine
from fatnn_rs.bench import networks
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.convert.api import convert_float
from fatnn_rs.convert.levels import coded_levels
from ladder import NETWORKS, RUNGS, SHAPES, LadderNetwork, LayerShape, command, plan
from ladder.collect import collect, figure, inside_network
from ladder.compare import compare
from ladder.noise import apply_noise_floor, summarise
from ladder.plan import BenchCase, LadderOptions
from ladder.report import markdown
from ladder.rungs import WEIGHTS
from nets import image
from quantizers.compare import ROWS

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


def call(*options: str) -> int:
    try:
        code: Any = ladder.__main__.main(options)
    except SystemExit as leaving:
        code = leaving.code
    return int(code or 0)


@pytest.fixture(scope="module", autouse=True)
def _rows() -> Iterator[None]:
    """A small layer and a small network, for these tests only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", TINY)
        patch.setitem(NETWORKS, "digits", LadderNetwork("float", "made-up"))
        yield


class Finished:
    """A ladder that was interrupted behind its first case and went on, and what it left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.measured = folder, list[BenchCase]()
        real = command._run

        def run(state: Any, case: BenchCase, *arguments: Any) -> str | None:
            if len(self.measured) == 1 and self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt
            reason = real(state, case, *arguments)
            self.measured.append(case)
            return reason

        self.interrupts = 1
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
            # Typer ends with 130 where it is interrupted.
            assert call(*self.options) != 0
            self.before = list(self.measured)
            assert call(*self.options) == 0
        self.file = folder / "new" / "ladder.json"
        self.results = json.loads(self.file.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    pytest.importorskip("matplotlib")
    return Finished(tmp_path_factory.mktemp("ladder"))


def test_an_interrupted_ladder_goes_on_where_it_stopped(finished: Finished) -> None:
    assert [str(case) for case in finished.before] == ["tiny, batch 1, threads 1, native"]
    assert [str(case) for case in finished.measured] == [
        "tiny, batch 1, threads 1, native",
        "digits, batch 1, threads 1, native",
        "tiny, batch 1, threads 1, scalar",
        "digits, batch 1, threads 1, scalar",
    ]


def test_nothing_is_measured_twice(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        command, "_run", lambda *arguments: pytest.fail("a case was measured again")
    )
    assert call(*finished.options[:-2]) == 0
    # All but the moment is the same.
    texts = [
        re.sub(r"T\d\d:\d\d:\d\d", "", text.strip())
        for text in (capsys.readouterr().out, markdown(finished.results))
    ]
    assert texts[0] == texts[1]


def test_every_rung_is_measured_or_named_with_the_reason(finished: Finished) -> None:
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
    """What the rung runs on here, or below the cap at scalar."""
    kernels = RUNGS[who].kernels()
    return (
        kernels
        if isa == "native"
        else [name for name in machine.Machine.current().kernels if _is(name, who)]
    )


def _is(name: str, who: str) -> bool:
    return name == f"generic-{RUNGS[who].family}-scalar"


def test_layers_are_measured_both_ways_and_networks_say_what_they_hold(finished: Finished) -> None:
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


def test_the_report_and_the_plots(finished: Finished) -> None:
    place = finished.folder / "results" / machine.Machine.current().slug
    assert sorted(re.sub(r"^[\d-]{10}", "", path.name) for path in place.iterdir()) == [
        *("-ladder-accuracy.png", "-ladder.json", "-ladder.md", "-ladder.png"),
    ]
    assert json.loads(next(place.glob("*.json")).read_text()) == finished.results
    # The command says which instruction sets where they are not all that this CPU has.
    text = next(place.glob("*.md")).read_text().replace(" --isa native,scalar", "")
    tiers = "scalar" if RUNGS["ternary-matrix"].kernels() else "native, scalar"
    for part in (
        *("## Theory and practice", "3×3, 20 channels, 6×6", "digits, batch 1", "| scalar |", "4N"),
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


def test_a_case_that_fails_is_named_and_the_others_go_on(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "broken", LayerShape("no channels", 0, 8))
    options = list(finished.options[: finished.options.index("--json")])
    for option, value in (("--layers", "broken,tiny"), ("--networks", "none"), ("--isa", "native")):
        options[options.index(option) + 1] = value
    assert call(*options) == 1
    captured = capsys.readouterr()
    assert "**failed**: broken, batch 1, threads 1, native: " in captured.out
    assert "### 3×3, 20 channels, 6×6" in captured.out
    assert captured.err.splitlines()[-1].startswith(
        "ladder: not measured: broken, batch 1, threads 1, native; the rep"
    )


def test_ladders_agree_within_their_spread(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(finished.results)
    row = other["cases"][0]["figures"][-1]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    assert call("--compare", str(finished.file), str(path)) == 0
    row["milliseconds"].update(
        {name: 1e3 * row["milliseconds"][name] for name in ("low", "median", "high")}
    )
    path.write_text(json.dumps(other))
    assert call("--compare", str(finished.file), str(path)) == 1
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
def test_misuse_is_one_clear_error(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*options, "--out", str(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ladder: {message}")


def test_a_file_of_instructions_has_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "counts"
    for text in ("no JSON", "{}"):
        path.write_text(text)
        assert call(*OPTIONS, "--out", str(tmp_path), "--instructions", str(path)) == 1
        assert (
            "expected the output of `cargo bench --package fatnn --bench instructions`"
            in capsys.readouterr().err
        )


def test_cases_are_every_combination_and_caps_are_measured_once() -> None:
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


@pytest.mark.parametrize("name", list(RUNGS))
def test_rungs_are_rows_of_other_tables(name: str) -> None:
    rung = RUNGS[name]
    assert not rung.accuracy or rung.accuracy in {"float", *ROWS}
    if rung.kind != "codes":
        assert rung.kernels() == []
        return
    assert set(rung.levels) <= set(coded_levels(rung.act))
    fatnn_rs.TernaryConfig(**dict(rung.config))  # type: ignore[arg-type]
    assert rung.passes is None or rung.passes <= (rung.executed or 0)
    weight = np.array(WEIGHTS[rung.weight], np.int8).reshape(-1, 1, 1, 1)
    for kernel in rung.kernels():
        info = _core.packed_info(_core.prepack(weight, 1, rung.act, kernel))
        assert info["name"] == kernel
        assert rung.family in kernel
    if rung.family == "popcount":
        assert rung.kernels()


def test_instructions_are_counted_for_layers_of_the_same_names() -> None:
    source = Path(__file__).parents[1] / "benches" / "instructions.rs"
    rows = re.findall(r'\("([\w-]+)", \[(\d+), (\d+)\], (\d+), (\d+)\)', source.read_text())
    assert len(rows) >= 4
    for name, *numbers in rows:
        shape = SHAPES[name]
        assert [shape.channels, shape.out_channels, shape.size, shape.window] == [
            int(number) for number in numbers
        ]


def test_a_kernel_is_taken_by_its_name_or_refused() -> None:
    weight = np.ones((4, 4, 1, 1), np.int8)
    with pytest.raises(
        InputError, match=r'kernel: expected one that this CPU has: .*generic-.*, got "nonsense"'
    ):
        _core.prepack(weight, 1, "half", "nonsense")
    with pytest.raises(
        InputError, match=r"kernel: expected one that runs uint2 .*, got generic-table-scalar"
    ):
        _core.prepack(3 * weight, 1, "uint2", "generic-table-scalar")
    for row in _core.kernels_for(weight, "half"):
        assert row.keys() == {"name", "family", "isa", "passes"}
        assert (
            _core.packed_info(_core.prepack(weight, 1, "half", row["name"]))["name"] == row["name"]
        )


def test_a_network_runs_on_the_family_it_is_given() -> None:
    built = networks.build_float("digits")
    config = fatnn_rs.TernaryConfig(act="uint2", weight="dorefa", first="int8", last="int8")
    net, codes = networks.convert_and_verify(built, config, "rust")
    assert codes > 0
    assert torch.equal(TernaryNetwork(net.graph, "rust", "popcount")(built.batch), net(built.batch))
    with pytest.raises(
        UnsupportedError, match=r"kernel family: expected one that runs .*, got table"
    ):
        TernaryNetwork(net.graph, "rust", "table")
    with pytest.raises(
        InputError, match=r'kernel family: expected "popcount", "matrix" or "table", got "tables"'
    ):
        TernaryNetwork(net.graph, "rust", "tables")


def test_a_float_model_runs_in_the_engine_whole() -> None:
    model = networks.build_float("small-cnn").model
    x = image(2, 1, 28, 28)
    net = convert_float(model, x)
    assert len(net.segments) == 1
    assert torch.allclose(net(x), model(x), rtol=1e-4, atol=1e-5)
    assert {kernel for _, kernel, _ in net.segments[0].network.products} == {"gemm-f32"}


def test_spreads_are_those_of_all_processes() -> None:
    found = summarise([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    assert found == {"median": 2.5, "low": 1.5, "high": 5.0, "medians": [2.0, 4.0]}


def test_no_spread_is_less_than_what_figures_like_it_move_by() -> None:
    def row(*processes: list[float]) -> dict[str, Any]:
        same = summarise([[1.0, 1.0, 1.0]] * len(processes))
        return {"milliseconds": summarise(processes), "over_float32": same, "of_popcount": None}

    def case(kind: str, threads: int, *rows: dict[str, Any]) -> dict[str, Any]:
        return {"kind": kind, "threads": threads, "figures": list(rows)}

    steady, restless = row([10.0] * 3, [10.0] * 3), row([10.0] * 3, [20.0] * 3)
    other, alone = row([5.0] * 3, [5.0] * 3), row([5.0, 6.0, 7.0])
    found = apply_noise_floor(
        [case("layer", 1, steady, restless), case("layer", 2, other), case("network", 1, alone)]
    )
    # Two pairs, which moved by 1 and by 2: the 95th percentile lies 95 of 100 of the way from one
    # to the other.
    factor = 2.0**0.95
    assert [
        (one["kind"], one["threads"], one["ratios"], one["pairs"], one["factor"]) for one in found
    ] == [
        ("layer", 1, False, 2, pytest.approx(factor)),
        ("layer", 2, False, 1, 1.0),
        ("network", 1, False, 0, 1.0),
    ]
    times = steady["milliseconds"]
    assert (times["low"], times["high"]) == (pytest.approx(10 / factor), pytest.approx(10 * factor))
    assert restless["milliseconds"]["low"] == pytest.approx(15 / factor)
    assert restless["milliseconds"]["high"] == pytest.approx(15 * factor)
    assert (other["milliseconds"]["low"], other["milliseconds"]["high"]) == (5.0, 5.0)
    assert (alone["milliseconds"]["low"], alone["milliseconds"]["high"]) == (5.5, 6.5)
    # What is divided by itself does not move.
    assert steady["over_float32"]["high"] == 1.0


def _unit(seconds: dict[tuple[str, str, str], list[float]]) -> dict[str, Any]:
    entries = [
        {"who": who, "kind": "rung" if who in RUNGS else "peer", "way": way, "variant": variant,
        "facts": {},
         "seconds": values}
        for (who, way, variant), values in seconds.items()
    ]  # fmt: skip
    row = {"title": "t", "channels": 128, "out_channels": 128, "window": 3}
    record = {"date": "2026-01-01", "load": None}
    spec = {"row": row}
    return {
        "spec": spec,
        "macs": 1,
        "rounds": 3,
        "machine": record,
        "entries": entries,
        "missing": [],
        "failed": [],
    }


def test_ratios_are_taken_inside_rounds_and_the_fastest_variant_counts() -> None:
    # The machine halves its speed in the second round: ratios do not see it.
    unit = _unit(
        {
            ("float32", "floats", ""): [8.0, 16.0, 8.0],
            ("ternary-popcount", "codes", "p"): [1.0, 2.0, 1.0],
            ("ternary-table", "codes", "slow"): [9.0, 9.0, 9.0],
            ("ternary-table", "codes", "fast"): [0.5, 1.0, 0.5],
            ("ternary-table", "floats", "fast"): [2.0, 4.0, 2.0],
            ("dorefa-popcount", "codes", "p"): [2.0, 4.0, 2.0],
            ("uint2-popcount", "codes", "p"): [1.2, 2.4, 1.2],
            ("some-int8", "floats", ""): [1.0, 2.0, 1.0],
        }
    )
    case = collect(BenchCase("layer", "made", 1, 1, plan.NATIVE), [unit, unit])
    table = figure(case, "ternary-table", "codes")
    assert table is not None
    assert table["variant"] == "fast"
    assert table["over_float32"] == {
        **dict.fromkeys(("median", "low", "high"), 16.0),
        "medians": [16.0] * 2,
    }
    assert table["of_popcount"]["median"] == 0.5


def test_options_are_the_command_that_measures_the_same() -> None:
    assert command.command_line(LadderOptions()).startswith("python -m ladder")
    options = LadderOptions(networks=(), rungs=("int8",), rounds=5)
    words = command.command_line(options)
    assert "--networks none" in words
    assert "--rungs int8" in words
    assert words.endswith("--rounds 5")
    with pytest.raises(ConfigError, match="rounds must be at least 3, got 2"):
        LadderOptions(rounds=2)

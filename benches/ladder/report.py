"""The ladder's report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ladder.collect import cases_of, figure, first_per_name, inside_network
from ladder.measure import CODES, FLOATS

__all__ = ["markdown"]

#: Text for a missing figure.
NONE = "–"


def markdown(results: dict[str, Any], plots: Sequence[str] = ()) -> str:
    """Return the report of a ladder.

    Parameters
    ----------
    results
        Results of :func:`ladder.command.ladder`, or of its JSON file.
    plots
        Names of image files in the same directory.
    """
    machine = results["machine"]
    parts = [
        f"# Precision ladder: {machine['cpu']}, {machine['date'][:10]}",
        f"    {results['command']}",
        _method(results),
        *(f"![{name}]({name})" for name in plots),
        "## Theory and practice",
        _passes_table(results),
        "## Layers",
        *_layers(results),
        "## Networks",
        *_networks(results),
        "## Instruction sets",
        _tiers(results),
        "## Memory",
        _memory(results),
        "## Instructions per multiply-accumulate",
        *_instructions(results),
        "## Not measured",
        _not_measured(results),
        "## Machine",
        _machine(machine),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(texts) + " |" for texts in lines)


def _case_text(case: dict[str, Any]) -> str:
    return f"{case['name']}, batch {case['batch']}, threads {case['threads']}"


def _title(results: dict[str, Any], who: str) -> str:
    return str(results["rungs"][who]["title"]) if who in results["rungs"] else who


def _number(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.5f}"


def _times(found: dict[str, Any]) -> str:
    times = found["milliseconds"]
    return f"{_number(times['median'])} ({_number(times['low'])}–{_number(times['high'])})"


def _ratio(found: dict[str, Any] | None, key: str) -> str:
    ratio = None if found is None else found[key]
    return NONE if ratio is None else f"{ratio['median']:.2f}"


def _method(results: dict[str, Any]) -> str:
    cases = results["cases"]
    processes = max((case["processes"] for case in cases), default=0)
    rounds = max((case["rounds"] for case in cases), default=0)
    loads = [load for case in cases for load in case["loads"] if load is not None]
    busy = ""
    if loads and max(loads) > results["machine"]["cpus"]:
        busy = (
            f" **Busy**: up to {max(loads):.1f} processes wanted {results['machine']['cpus']} "
            "processors during the measurement; ratios are more reliable than times. Measure again "
            "on an idle machine."
        )
    return (
        f"Medians of {rounds} interleaved rounds (fewer if they would take over a minute) in each "
        f"of {processes} processes. In brackets: the outermost quartiles of any process or, if it "
        "is wider, the noise of such figures between processes"
        + _noise_text(results)
        + ". `× float32`: speed divided by that of our own float32 layer or network, round by "
        "round; `of 2N`: time divided by that of the ternary popcount kernel. Every kernel's sums, "
        "codes and floats equalled a reference before it was timed. docs/ladder.md explains the "
        "columns." + busy
    )


def _noise_text(results: dict[str, Any]) -> str:
    """Return the noise of every kind of figures: the 95th percentile of changes."""
    found = [
        f"{'ratios' if row['ratios'] else 'times'} of {row['kind']}s, {row['threads']} "
        f"thread{'s' if row['threads'] > 1 else ''}, {100 * (row['factor'] - 1):.0f}%"
        for row in results["moves"]
        if row["factor"] > 1
    ]
    return f" (95th percentile: {'; '.join(found)})" if found else ""


def _passes_table(results: dict[str, Any]) -> str:
    """Compare passes over bits in theory and in the kernels with measured times."""
    layers = first_per_name(cases_of(results, "layer"))
    head = ["rung", "weights", "activations", "theory", "kernels run", "theory, of 2N"]
    head += [f"{case['name']}, of 2N" for case in layers]
    counted = _counted(results)
    head += ["instructions per MAC"] if counted else []
    rows = []
    for name, rung in results["rungs"].items():
        if rung["kind"] != "codes":
            continue
        passes, executed = rung["passes"], rung["executed"]
        row = [
            rung["title"],
            rung["weight_bits"],
            rung["act_bits"],
            _passes(passes),
            _passes(executed),
            NONE if passes is None else f"{passes / 2:g}",
        ]
        found = [figure(case, name, CODES) for case in layers]
        row += [_ratio(one, "of_popcount") for one in found]
        if counted:
            keys = {(one["variant"], rung["weight"], rung["act"]) for one in found if one}
            counts = [value for key in keys for value in counted.get(key, {}).values()]
            row.append(f"{min(counts):.3f}–{max(counts):.3f}" if counts else NONE)
        rows.append(row)
    slower = [
        rung["title"]
        for rung in results["rungs"].values()
        if rung["passes"] and rung["executed"] and rung["executed"] != rung["passes"]
    ]
    note = "First batch size and thread count, codes to codes."
    if slower:
        note += f" The kernels read more bit planes than in theory for: {'; '.join(slower)}."
    return note + "\n\n" + _table(head, rows)


def _passes(passes: int | None) -> str:
    return NONE if passes is None else "N" if passes == 1 else f"{passes}N"


def _layers(results: dict[str, Any]) -> Iterable[str]:
    for case in cases_of(results, "layer"):
        names = list(dict.fromkeys(row["who"] for row in case["figures"]))
        rows = []
        for who in names:
            codes, floats = inside_network(case, who), figure(case, who, FLOATS)
            is_rung = who in results["rungs"]
            row = [_title(results, who)]
            for found in (codes if is_rung else None, floats):
                row += (
                    [_times(found), _number(case["macs"] / found["milliseconds"]["median"] / 1e6)]
                    if found
                    else [NONE, NONE]
                )
                row.append(_ratio(found, "over_float32"))
            row += [
                _ratio(figure(case, who, CODES), "of_popcount"),
                (codes or {}).get("variant", "") or NONE,
            ]
            rows.append(row)
        head = [
            "",
            "inside a network, ms",
            "GMAC/s",
            "× float32",
            "floats to floats, ms",
            "GMAC/s",
            "× float32",
        ]
        yield f"### {case['row']['title']}, batch {case['batch']}, threads {case['threads']}"
        yield _table([*head, "of 2N", "fastest of"], rows)


def _networks(results: dict[str, Any]) -> Iterable[str]:
    for case in cases_of(results, "network"):
        rows = []
        for found in case["figures"]:
            facts = found["facts"]
            kernels = ", ".join(
                f"{count}× {name}" for name, count in facts.get("kernels", {}).items()
            )
            codes = facts.get("codes_verified")
            rows.append(
                [
                    _title(results, found["who"]),
                    _times(found),
                    _ratio(found, "over_float32"),
                    _ratio(found, "of_popcount"),
                    NONE if codes is None else f"0 of {codes:,}",
                    kernels or found["variant"] or facts.get("details") or NONE,
                ]
            )
        yield (
            f"### {case['name']}, batch {case['batch']}, threads {case['threads']}, "
            f"{case['row']['ends']} first and last layer"
        )
        yield _table(["", "ms", "× float32", "of 2N", "codes that differ", "kernels"], rows)


def _tiers(results: dict[str, Any]) -> str:
    """Return the times of every rung with every instruction set."""
    tiers = list(dict.fromkeys(case["isa"] for case in results["cases"]))
    if len(tiers) < 2:
        return "Only one instruction set was measured."
    by_tier = {
        isa: {
            case["name"]: case
            for kind in ("layer", "network")
            for case in first_per_name(cases_of(results, kind, isa))
        }
        for isa in tiers
    }
    rows = []
    for name in by_tier[tiers[0]]:
        for who in results["rungs"]:
            found = [
                inside_network(by_tier[isa][name], who) if name in by_tier[isa] else None
                for isa in tiers
            ]
            if sum(row is not None for row in found) > 1:
                rows.append(
                    [
                        name,
                        _title(results, who),
                        *(NONE if row is None else _times(row) for row in found),
                    ]
                )
    note = (
        "First batch size and thread count, ms, inside a network; `native` is the best instruction "
        "set. Float32 is left out: its library chooses instructions itself."
    )
    return note + "\n\n" + _table(["", "rung", *tiers], rows)


def _memory(results: dict[str, Any]) -> str:
    rows = []
    for case in cases_of(results, "network"):
        for found in case["figures"]:
            facts = found["facts"]
            if "file_bytes" in facts:
                sizes = [
                    f"{facts[name] / 1024:,.0f}"
                    for name in ("file_bytes", "weight_bytes", "buffer_bytes")
                ]
                rows.append(
                    [case["name"], str(case["batch"]), _title(results, found["who"]), *sizes]
                )
    if not rows:
        return "Not measured: it needs networks with one thread and the native instruction set."
    head = [
        "",
        "batch",
        "rung",
        "file, KiB",
        "packed weights, KiB",
        "buffers for values, KiB",
    ]
    return _table(head, rows)


def _instructions(results: dict[str, Any]) -> Iterable[str]:
    counted = results["instructions"]
    if counted is None or counted["valgrind"] is None:
        why = (
            "`--instructions` was not given"
            if counted is None
            else "valgrind is not installed here"
        )
        yield f"Not counted: {why}. `make ladder` counts them first."
        return
    layers = list(dict.fromkeys(row["layer"] for row in counted["rows"]))
    rows = [
        [*key, *(f"{counts[layer]:.4f}" if layer in counts else NONE for layer in layers)]
        for key, counts in _counted(results).items()
    ]
    yield (
        f"Counted by {counted['valgrind']}'s callgrind or, for instructions that it does not know, "
        "by single-stepping; one thread, codes to codes, driver and epilogue included."
    )
    yield _table(["kernel", "weights", "activations", *layers], rows)
    if counted["not_counted"]:
        yield (
            "Not counted: "
            + "; ".join(f"{row['kernel']} ({row['reason']})" for row in counted["not_counted"])
            + "."
        )


def _counted(results: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return (kernel, weights, activations) → layer → instructions per multiply-accumulate."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in (results["instructions"] or {"rows": []})["rows"]:
        found.setdefault((row["kernel"], row["weights"], row["act"]), {})[row["layer"]] = row[
            "instructions_per_mac"
        ]
    return found


def _not_measured(results: dict[str, Any]) -> str:
    """List everything without a figure, and the reasons."""
    lines = [f"- **failed**: {row['case']}: {row['reason']}" for row in results["failed_cases"]]
    seen: dict[tuple[str, str, str], list[str]] = {}
    for case in results["cases"]:
        for state in ("failed", "missing"):
            for row in case[state]:
                place = _case_text(case) if state == "failed" else case["isa"]
                seen.setdefault((state, row["who"], row["reason"]), []).append(place)
    for (state, who, reason), places in seen.items():
        among = ", ".join(dict.fromkeys(places))
        what = (
            f"**failed**: {_title(results, who)} ({among})"
            if state == "failed"
            else f"{_title(results, who)} ({among})"
        )
        lines.append(f"- {what}: {reason}")
    counted = results["instructions"]
    if counted is None:
        lines.append("- instructions: no file was given")
    return "\n".join(lines) or "Nothing: every rung and every runtime has a figure in every case."


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    environment = ", ".join(f"{name}={value}" for name, value in machine["environment"].items())
    clock = "" if machine["clock_mhz"] is None else f", {machine['clock_mhz']:.0f} MHz stated"
    return "\n".join(
        [
            f"- {machine['cpu']} ({machine['cpu_id'] or machine['system']}){clock}, "
            f"{machine['cpus']} processors, {machine['system']}: {' '.join(machine['flags'])}",
            f"- kernels: {', '.join(machine['kernels'])}",
            f"- {versions}, python {machine['python']}, commit {machine['commit'] or 'unknown'}, "
            f"{machine['date']}",
            f"- environment: {environment or 'nothing set that changes speed'}",
        ]
    )

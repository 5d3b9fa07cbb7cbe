"""Run every case in its own process, keep the results, and write figures and a report."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fatnn_rs.errors import FormatError
from fatnn_rs.machine import Machine
from ladder import plots, report
from ladder.collect import collect
from ladder.noise import apply_noise_floor
from ladder.plan import NATIVE, BenchCase, Ladder, LadderOptions, cases
from ladder.rungs import RUNGS
from ladder.shapes import NETWORKS
from ladder.worker import PROGRESS_MARK

__all__ = ["failures", "ladder", "publish"]

#: Environment variables about kernels and threads that cases set themselves.
_CASE_VARIABLES = ("FATNN_ISA", "FATNN_KERNEL", "FATNN_NUM_THREADS")

#: The directory ``benches``, for the import path of the processes.
_BENCHES = str(Path(__file__).resolve().parents[1])


def ladder(
    options: LadderOptions,
    console: Console,
    instructions: Path | None = None,
    accuracies: Path | None = None,
) -> dict[str, Any]:
    """Measure what is missing, and return all results.

    Parameters
    ----------
    options
        What to measure.
    console
        Console for the progress bar.
    instructions
        Output of ``cargo bench --bench instructions``.
    accuracies
        Directory of the results of ``benches/quantizers``.

    Returns
    -------
    dict
        Plain data; :func:`publish` writes it.

    Raises
    ------
    FormatError
        ``instructions`` is no such output.
    """
    counted = None if instructions is None else _instructions(instructions)
    state = Ladder(options, Machine.current())
    failed = _run_all(state, console)
    collected = []
    for case in cases(options):
        units = [
            unit
            for process in range(options.processes)
            if (unit := state.read(case, process)) is not None
        ]
        if units:
            collected.append(collect(case, units))
    moves = apply_noise_floor(collected)
    results: dict[str, Any] = {
        "command": command_line(options),
        "machine": asdict(state.machine),
        "rungs": {
            name: {**asdict(rung), "executed": rung.executed}
            for name, rung in RUNGS.items()
            if name in options.rungs
        },
        "cases": collected,
        "moves": moves,
        "failed_cases": [{"case": str(case), "reason": reason} for case, reason in failed.items()],
        "accuracies": {} if accuracies is None else _accuracies(accuracies, options),
        "instructions": counted,
    }
    plain: dict[str, Any] = json.loads(json.dumps(results))
    return plain


def command_line(options: LadderOptions) -> str:
    """Return the command line that repeats this ladder."""
    usual, words = LadderOptions(), ["python -m ladder"]
    for option, name in (
        ("layers", "layers"),
        ("networks", "networks"),
        ("rungs", "rungs"),
        ("batch", "batches"),
        ("threads", "threads"),
        ("isa", "isas"),
        ("against", "against"),
    ):
        values = tuple(getattr(options, name))
        if values != tuple(getattr(usual, name)):
            words.append(f"--{option} {shlex.quote(','.join(map(str, values)) or 'none')}")
    for name in ("rounds", "processes"):
        if getattr(options, name) != getattr(usual, name):
            words.append(f"--{name} {getattr(options, name)}")
    return " ".join(words)


def _run_all(state: Ladder, console: Console) -> dict[BenchCase, str]:
    """Measure what is missing; return failed cases and the reasons."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    failed: dict[BenchCase, str] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        units = state.case_processes()
        task = progress.add_task("", total=len(units))
        for case, process in units:
            if case not in failed and state.read(case, process) is None:

                def show(what: str, case: BenchCase = case) -> None:
                    progress.update(task, description=f"{case}: {what}")

                show("starting")
                reason = _run(state, case, process, show)
                if reason is not None:
                    failed[case] = reason
                    console.print(f"failed: {case}: {reason}", highlight=False, markup=False)
            progress.advance(task)
    return failed


def _run(state: Ladder, case: BenchCase, process: int, show: Callable[[str], None]) -> str | None:
    """Measure a case in its own process; return the reason if it failed."""
    environment = {name: value for name, value in os.environ.items() if name not in _CASE_VARIABLES}
    environment["OMP_NUM_THREADS"] = str(case.threads)
    environment["PYTHONPATH"] = os.pathsep.join(
        path for path in (_BENCHES, environment.get("PYTHONPATH")) if path
    )
    if case.isa != NATIVE:
        environment["FATNN_ISA"] = case.isa
    path = state.path(case, process)
    path.unlink(missing_ok=True)  # It is of another commit or machine.
    log = path.with_suffix(".log")
    given = {
        "spec": state.spec(case),
        "process": process,
        "cache": str(state.options.out / "networks"),
    }
    with log.open("w", encoding="utf-8") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "ladder.worker", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(given))
            child.stdin.close()
            for line in child.stdout:
                if line.startswith(PROGRESS_MARK):
                    what, done, total = json.loads(line.removeprefix(PROGRESS_MARK))
                    show(f"{what} {done}/{total}")
            code = child.wait()
        except BaseException:  # Most likely an interrupt: a resumed ladder repeats the case.
            child.kill()
            child.wait()
            raise
        finally:
            if child.stdout is not None:
                child.stdout.close()
    if code == 0 and state.read(case, process) is not None:
        log.unlink()
        return None
    return _reason(code, log)


def _reason(code: int, log: Path) -> str:
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}, see {log}"
    last = lines[-1].strip() if lines else f"exit code {code}"
    return last.removeprefix("fatnn: ") if last.startswith("fatnn: ") else f"{last} (see {log})"


def failures(results: dict[str, Any]) -> list[str]:
    """Name the cases that failed, and the runtimes that failed in other cases."""
    cases_failed = [row["case"] for row in results["failed_cases"]]
    return cases_failed + sorted(
        {f"{row['who']} on {case['name']}" for case in results["cases"] for row in case["failed"]}
    )


def publish(results: dict[str, Any], folder: Path) -> Path:
    """Write results to ``folder/<cpu>/<date>-ladder.json``, ``.md`` and plots.

    If these files exist, the new ones get a number.

    Returns
    -------
    Path
        The Markdown file.
    """
    path = Machine.current().results_file(folder, "ladder")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    drawn = plots.draw(results, path.with_suffix(""))
    text = report.markdown(results, [file.name for file in drawn])
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return path.with_suffix(".md")


def _instructions(path: Path) -> dict[str, Any]:
    try:
        counted: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(
            f"{path}: expected the output of `cargo bench --package fatnn --bench instructions`, "
            f"got no JSON: {error}"
        ) from error
    if not isinstance(counted, dict) or not {"valgrind", "rows", "not_counted"} <= counted.keys():
        raise FormatError(
            f"{path}: expected the output of `cargo bench --package fatnn --bench instructions`, "
            "got other JSON"
        )
    return counted


def _accuracies(folder: Path, options: LadderOptions) -> dict[str, Any]:
    """Return network → rung → accuracy, from existing results of ``benches/quantizers``."""
    found: dict[str, Any] = {}
    for name in options.networks:
        stem = NETWORKS[name].accuracies
        path = folder / f"{stem}.json"
        if not stem or not path.exists():
            continue
        rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
        found[name] = {
            rung: {
                "mean": rows[row.accuracy]["mean"],
                "std": rows[row.accuracy]["std"],
                "from": path.name,
            }
            for rung, row in RUNGS.items()
            if row.accuracy in rows
        }
    return found

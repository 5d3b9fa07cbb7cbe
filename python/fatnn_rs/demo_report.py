"""Table and picture of ``fatnn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from fatnn_rs.errors import UnsupportedError

__all__ = ["draw", "require_matplotlib", "show", "targets_line"]


def require_matplotlib() -> None:
    """Raise an :class:`UnsupportedError` with the install command if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "the picture needs matplotlib, which is missing: pip install matplotlib (or run with "
            "--no-picture)"
        ) from error


def targets_line(result: dict[str, Any]) -> str:
    """Return one line that says whether the targets are met."""
    targets, ternary = result["targets"], result["mean"]["rust_accuracy"]
    least, most = targets["ternary_mean_at_least"], targets["float_minus_ternary_at_most"]
    gap = targets["float_minus_ternary"]
    place = (
        f"{gap * 100:.2f} points below float"
        if gap >= 0
        else f"{-gap * 100:.2f} points above float"
    )
    unusual = "" if targets["binding"] else " (binding for the default seeds and epochs only)"
    return (
        f"{'met' if targets['hold'] else 'missed'}: ternary mean {ternary:.2%} (at least "
        f"{least:.1%}), {place} (at most {most * 100:.1f}){unusual}"
    )


def show(result: dict[str, Any], console: Console) -> None:
    """Print the figures of :func:`fatnn_rs.demo.main`."""
    data, runs, average = result["data"], result["runs"], result["mean"]
    title = f"8x8 digits: {data['train']} training images, {data['test']} held out"
    table = Table("", "float", "ternary, eager", "ternary, Rust", "codes different", title=title)
    for run in runs:
        table.add_row(
            f"seed {run['seed']}",
            f"{run['float_accuracy']:.2%}",
            f"{run['ternary_accuracy']:.2%}",
            f"{run['rust_accuracy']:.2%}",
            f"{run['codes_different']} of {run['codes_total']:,}",
        )
    table.add_row(
        "mean",
        f"{average['float_accuracy']:.2%}",
        f"{average['ternary_accuracy']:.2%}",
        f"{average['rust_accuracy']:.2%}",
        f"{result['codes_different']} of {result['codes_total']:,}",
        style="bold",
    )
    console.print(table)
    console.print(f"targets: {targets_line(result)}", highlight=False, soft_wrap=True)

    sizes = result["sizes"]
    table = Table("size", "float32", "ternary", "ratio")
    for name, wide, narrow in (
        ("whole network, on disk", "float_network_bytes", "file_bytes"),
        (
            "ternary weights, packed for their kernels",
            "ternary_layers_float_bytes",
            "ternary_layers_packed_bytes",
        ),
    ):
        ratio = sizes[wide] / sizes[narrow]
        table.add_row(
            name,
            f"{sizes[wide] / 1024:.1f} KiB",
            f"{sizes[narrow] / 1024:.1f} KiB",
            f"{ratio:.1f}x",
        )
    console.print(table)

    table = Table("latency, median", "torch float", "Rust ternary", "speed-up")
    for row in result["latency_ms"]:
        threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
        best = min(row["torch"], row["torch_channels_last"])
        speed = (
            f"{row['speedup']:.2f}x" if row["speedup"] >= 1 else f"{row['speedup']:.2f}x (slower)"
        )
        table.add_row(
            f"batch {row['batch']}, {threads}", f"{best:.3f} ms", f"{row['rust']:.3f} ms", speed
        )
    console.print(table)
    single = {row["batch"]: row["torch"] for row in result["latency_ms"] if row["threads"] == 1}
    if any(row["torch"] > 3 * single[row["batch"]] for row in result["latency_ms"]):
        console.print(
            "note: torch was slower with several threads than with one, so other programs probably "
            "used the CPU; ignore those rows"
        )

    seconds = result["seconds"]
    console.print(f"{seconds['total']:.1f} s in total, {seconds['training']:.1f} s of training")
    for name, path in result["files"].items():
        console.print(f"{name}: {path}", soft_wrap=True, highlight=False)


def draw(runs: list[dict[str, Any]], codes: dict[str, Tensor], path: Path) -> None:
    """Draw a PNG file with training curves and the fractions of weight codes per layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, score, bars = figure.subplots(1, 3)
    for run in runs:
        for name, colour, start in (
            ("float", "tab:blue", 0),
            ("ternary", "tab:orange", len(run["float_history"])),
        ):
            history = run[f"{name}_history"]
            steps = [start + epoch["epoch"] for epoch in history]
            style = {"color": colour, "label": name if run is runs[0] else None, "alpha": 0.7}
            loss.plot(steps, [epoch["loss"] for epoch in history], **style)
            score.plot(steps, [100 * epoch["test_accuracy"] for epoch in history], **style)
    loss.set(
        title="training loss (ternary: with distillation)", xlabel="epoch", ylabel="cross-entropy"
    )
    score.set(title="accuracy on held-out digits", xlabel="epoch", ylabel="%", ylim=(90, 100))
    loss.legend()
    score.legend()

    base = [0.0] * len(codes)
    for code, colour in ((-1, "tab:red"), (0, "lightgrey"), (1, "tab:green")):
        share = [100 * float((value == code).float().mean()) for value in codes.values()]
        bars.bar(
            range(len(codes)), share, bottom=base, color=colour, label=f"{code:+d}" if code else "0"
        )
        base = [low + value for low, value in zip(base, share, strict=True)]
    bars.set(title="weight codes (first seed)", ylabel="%", ylim=(0, 100))
    bars.set_xticks(range(len(codes)), list(codes), rotation=60, ha="right", fontsize=7)
    bars.legend(loc="lower left", framealpha=0.9)
    figure.savefig(path, dpi=110)

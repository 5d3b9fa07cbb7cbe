"""Plots of the ladder: speed-ups over float32, and accuracy against latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fatnn_rs.errors import UnsupportedError
from ladder.collect import cases_of, figure, first_per_name, inside_network
from ladder.measure import FLOATS
from ladder.rungs import FLOAT32

__all__ = ["draw", "require_matplotlib"]


def require_matplotlib() -> None:
    """Raise an :class:`UnsupportedError` if matplotlib is missing, before anything slow begins."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "--results draws with matplotlib: pip install 'fatnn-rs[plot]'"
        ) from error


def draw(results: dict[str, Any], stem: Path) -> list[Path]:
    """Draw every plot for which there are figures; return the files (``stem`` plus a suffix)."""
    require_matplotlib()
    drawn = [
        _speedups(results, stem.with_name(f"{stem.name}.png")),
        _accuracies(results, stem.with_name(f"{stem.name}-accuracy.png")),
    ]
    return [path for path in drawn if path is not None]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _speedups(results: dict[str, Any], path: Path) -> Path | None:
    """Draw each rung's speed-up, grouped by layer and network, for the first batch and threads."""
    cases = [
        case for kind in ("layer", "network") for case in first_per_name(cases_of(results, kind))
    ]
    rungs = [name for name in results["rungs"] if name != FLOAT32]
    groups = {
        case["name"]: [
            found["over_float32"] if (found := inside_network(case, rung)) is not None else None
            for rung in rungs
        ]
        for case in cases
    }
    groups = {name: values for name, values in groups.items() if any(values)}
    if not groups:
        return None
    chart = _figure(max(8.0, 1.6 * len(groups)), 5)
    axes = chart.subplots()
    shown = [
        number for number in range(len(rungs)) if any(values[number] for values in groups.values())
    ]
    width = 0.8 / len(shown)
    for position, number in enumerate(shown):
        rung = rungs[number]
        bars = [
            (place, ratio)
            for place, values in enumerate(groups.values())
            if (ratio := values[number])
        ]
        tops = [ratio["median"] for _, ratio in bars]
        noise = [
            [ratio["median"] - ratio["low"] for _, ratio in bars],
            [ratio["high"] - ratio["median"] for _, ratio in bars],
        ]
        places = [place + (position - (len(shown) - 1) / 2) * width for place, _ in bars]
        # Bars start at 1, which is float32. On the logarithmic axis, equal heights are equal
        # factors, and bars of slower rungs point down.
        heights = [top - 1 for top in tops]
        label = results["rungs"][rung]["title"]
        axes.bar(places, heights, width, bottom=1, yerr=noise, label=label, error_kw={"lw": 0.6})
    axes.axhline(1, color="black", lw=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
    axes.set(ylabel="times as fast as our float32", title=results["machine"]["cpu"])
    axes.grid(axis="y", alpha=0.3)
    chart.legend(loc="outside lower center", ncols=3 if len(groups) > 5 else 2, fontsize=8)
    chart.savefig(path, dpi=110)
    return path


def _accuracies(results: dict[str, Any], path: Path) -> Path | None:
    """Draw accuracy against latency of every rung, for networks with known accuracies."""
    cases = {
        case["name"]: case
        for case in first_per_name(cases_of(results, "network"))
        if case["name"] in results["accuracies"]
    }
    if not cases:
        return None
    chart = _figure(6.5 * len(cases), 4.5)
    for axes, (name, case) in zip(
        chart.subplots(1, len(cases), squeeze=False)[0], cases.items(), strict=True
    ):
        for rung, accuracy in results["accuracies"][name].items():
            found = figure(case, rung, FLOATS)
            if found is None:
                continue
            [point] = axes.plot([found["milliseconds"]["median"]], [100 * accuracy["mean"]], "o")
            axes.errorbar(
                [found["milliseconds"]["median"]],
                [100 * accuracy["mean"]],
                yerr=[100 * (accuracy["std"] or 0.0)],
                color=point.get_color(),
                capsize=3,
                label=results["rungs"][rung]["title"],
            )
        axes.set(
            xlabel=f"milliseconds, batch {case['batch']}, threads {case['threads']}",
            ylabel="test accuracy, %",
            title=name,
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    chart.savefig(path, dpi=110)
    return path

"""The command line: ``fatnn info | demo | recipes | train | eval | inspect | run | bench``.

All commands except ``info``, ``inspect`` and ``run`` need torch. Figures go to standard output (as
JSON with ``--json``), messages to standard error. Expected errors print one line and exit with 1;
wrong usage exits with 2.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from fatnn_rs.errors import ConfigError, FatnnError, InputError, UnsupportedError

__all__ = [
    "DataOption",
    "DownloadOption",
    "RecipeOption",
    "SettingsOption",
    "app",
    "main",
    "run_app",
    "split_names",
    "split_numbers",
]

app = typer.Typer(
    help="Ternary neural networks that really run in 2 bits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Network = Annotated[
    Path, typer.Argument(help="A file written by fatnn_rs.save.", exists=True, dir_okay=False)
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        1 if a command failed. Success and wrong usage raise ``SystemExit`` with 0 and 2.
    """
    return run_app(app, arguments, "fatnn")


def run_app(app: typer.Typer, arguments: Sequence[str] | None, name: str) -> int:
    """Run a command line; print an expected error as one line on standard error and return 1."""
    try:
        app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name=name)
    except (FatnnError, ImportError, OSError) as error:
        print(f"{name}:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


@app.command()
def info(as_json: Json = False) -> None:
    """Show versions, this CPU, the kernels it can run, and the number of threads."""
    import fatnn_rs

    figures: dict[str, Any] = {
        "fatnn_rs": fatnn_rs.__version__,
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "torch": _version("torch"),
        **fatnn_rs.cpu_info(),
    }
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {'not installed' if shown is None else shown}")


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="How many networks to train.")] = 3,
    float_epochs: Annotated[int, typer.Option(min=1, help="Epochs of float training.")] = 6,
    ternary_epochs: Annotated[int, typer.Option(min=1, help="Epochs of ternary training.")] = 10,
    out: Annotated[
        Path, typer.Option(help="Directory for the network, the picture and the figures.")
    ] = Path("demo-output"),
    picture: Annotated[
        bool, typer.Option(help="Draw training curves and weight codes (needs matplotlib).")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train, convert, verify, save, load and time a ternary network on handwritten digits."""
    from rich.console import Console

    _require_training()
    from fatnn_rs import demo as demonstration

    options = demonstration.DemoOptions(seeds, float_epochs, ternary_epochs, out, picture=picture)
    result = demonstration.main(options, Console(stderr=True) if as_json else Console())
    if as_json:
        print(json.dumps(result, indent=2))


RecipeOption = Annotated[
    str, typer.Option("--config", help="A recipe's name (see `fatnn recipes`) or a .yaml file.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting: ternary.epochs=2. Repeatable."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", envvar="FATNN_DATA", help="Directory of the data set."),
]
DownloadOption = Annotated[
    bool, typer.Option(help="Download a missing data set through torchvision.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of torch's threads.")]


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with the package."""
    _require_training()
    from fatnn_rs.train.recipe import load_recipe, recipe_names

    described = {name: load_recipe(name).description for name in recipe_names()}
    if as_json:
        print(json.dumps(described, indent=2))
        return
    width = max(map(len, described))
    for name, description in described.items():
        print(f"{name:<{width}}  {description}")


@app.command()
def train(
    config: RecipeOption,
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option(help="Directory of the run; an interrupted run there is resumed.")
    ] = Path("run"),
    model: Annotated[
        str | None,
        typer.Option(help="Replace the recipe's model: torchvision:NAME or timm:NAME."),
    ] = None,
    settings: SettingsOption = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, order and augmentation.")
    ] = 0,
    float_from: Annotated[
        Path | None,
        typer.Option(help="Start from this float checkpoint.", dir_okay=False),
    ] = None,
    float_only: Annotated[
        bool, typer.Option("--float-only", help="Train only the float model.")
    ] = False,
    threads: Threads = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
    download: DownloadOption = True,
    as_json: Json = False,
) -> None:
    """Train a recipe: a float model, a ternary model from it, and the converted network.

    Run it under torchrun to train in several processes.
    """
    from rich.console import Console

    _require_training()
    from fatnn_rs.train.loop import TrainOptions
    from fatnn_rs.train.loop import train as run_recipe
    from fatnn_rs.train.recipe import load_recipe

    given = list(settings or ())
    recipe = load_recipe(config, given if model is None else [f"model={json.dumps(model)}", *given])
    _set_threads(threads)
    options = TrainOptions(
        out=out, data=data, seed=seed, download=download, float_from=float_from, cpu=cpu
    )
    result = run_recipe(
        recipe.float_only() if float_only else recipe, options, Console(stderr=True)
    )
    shown = {key: result[key] for key in _FIGURES if key in result}
    if os.environ.get("RANK", "0") != "0":  # Under torchrun, only the first process prints.
        return
    if as_json:
        print(json.dumps(shown))
        return
    for key, value in shown.items():
        print(f"{key:<17} {value:.2%}" if key.endswith("accuracy") else f"{key:<17} {value}")
    print(f"{'folder':<17} {out}")


#: Keys of a training result that ``train`` prints.
_FIGURES = (
    "float_accuracy",
    "ternary_accuracy",
    "rust_accuracy",
    "codes_total",
    "codes_different",
    "refused",
    "not_saved",
    "file_bytes",
    "seconds",
)


@app.command(name="eval")
def evaluate(
    network: Network,
    config: RecipeOption,
    data: DataOption = None,
    settings: SettingsOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 250,
    download: DownloadOption = True,
    as_json: Json = False,
) -> None:
    """Measure a saved network's accuracy on a recipe's test images."""
    _require_training()
    from fatnn_rs.train.data import load_data
    from fatnn_rs.train.recipe import load_recipe

    test = load_data(load_recipe(config, settings or ()), data, download)
    net = _load(network)
    outputs = net(next(iter(test.test_batches(1)))[0])
    if getattr(outputs, "shape", None) != (1, test.classes):
        shape = list(getattr(outputs, "shape", ()))
        raise InputError(
            f"{network}: gives {shape or type(outputs).__name__} for one image, but data set "
            f"{test.name!r} has {test.classes} classes; give the --config it was trained with"
        )
    start = time.perf_counter()
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in test.test_batches(batch))
    seconds = time.perf_counter() - start
    figures = {
        "accuracy": right / test.test_count,
        "images": test.test_count,
        "seconds": round(seconds, 2),
    }
    print(
        json.dumps(figures)
        if as_json
        else f"{right / test.test_count:.2%} of {test.test_count:,} images, {seconds:.1f} s"
    )


def _require_training() -> None:
    for module in ("torch", "accelerate", "pydantic", "yaml"):
        _require(module, "'fatnn-rs[train]'")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@app.command()
def inspect(network: Network, as_json: Json = False) -> None:
    """Show the layers of a saved network and where each runs."""
    if _has("torch"):
        report = _load(network).report
    else:
        from fatnn_rs.numpy_network import read_report

        report = read_report(network)
    print(report.to_json() if as_json else report)


@app.command()
def run(
    network: Network,
    inputs: Annotated[
        Path,
        typer.Argument(
            help="Input array, .npy, of the type that the network takes.",
            exists=True,
            dir_okay=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the output here, .npy.")] = None,
    as_json: Json = False,
) -> None:
    """Run a saved network on an array and print the index of each row's largest output."""
    import numpy as np

    net = _load(network)
    try:
        array = np.load(inputs, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{inputs}: expected an array in .npy format: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{inputs}: expected one array in .npy format, got an archive of several")
    if array.dtype.name not in ("float32", "int32", "int64", "bool"):
        raise InputError(
            f"{inputs}: expected float32 (or int32, int64 or bool if the network takes those), got "
            f"{array.dtype}; save array.astype(numpy.float32)"
        )
    given: Any = np.ascontiguousarray(array)
    if _has("torch"):
        import torch

        given = torch.from_numpy(given)
    start = time.perf_counter()
    output = net(given)
    seconds = time.perf_counter() - start
    if isinstance(output, (tuple, list, dict)) or not hasattr(output, "shape"):
        raise InputError(
            f"{network}: the network returns {type(output).__name__}; `run` only shows networks "
            "that return one tensor"
        )
    result = np.asarray(output)
    if out is not None:
        with out.open("wb") as file:  # Given a path, numpy.save would append .npy to it.
            np.save(file, result)
    strongest = result.reshape(len(result), -1).argmax(1).tolist() if result.ndim > 1 else []
    figures = {"shape": list(result.shape), "argmax": strongest, "milliseconds": 1e3 * seconds}
    if as_json:
        print(json.dumps(figures))
        return
    print(
        f"output {list(result.shape)} in {1e3 * seconds:.2f} ms"
        + (f", written to {out}" if out else "")
    )
    print("argmax", *strongest[:50], *(["..."] if len(strongest) > 50 else []))


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="Networks, comma-separated.")] = "resnet18",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1",
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "1",
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width of the images, for networks that allow it."),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Runtimes to compare with, comma-separated; 'all' or 'none'.")
    ] = "all",
    rounds: Annotated[
        int, typer.Option(min=3, help="Rounds; every runtime has a turn in each.")
    ] = 25,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write figures to this file; '-': print them.")
    ] = None,
    ends: Annotated[str, typer.Option(help="First and last layers: float,int8,ternary.")] = "float",
    values: Annotated[str, typer.Option(help="Values between layers: float32,int8.")] = "float32",
    results: Annotated[
        Path | None, typer.Option(help="Write figures to RESULTS/<cpu>/<date>-networks.json.")
    ] = None,
) -> None:
    """Time converted networks against other runtimes: median per network and per layer."""
    from rich.console import Console

    _require("torch", "torch")
    from fatnn_rs.bench import PEERS, command

    everyone: dict[str, tuple[str, ...]] = {"all": tuple(PEERS), "none": ()}
    options = command.BenchOptions(
        models=split_names(model),
        batches=split_numbers("--batch", batch),
        threads=split_numbers("--threads", threads),
        size=size,
        against=everyone[against] if against in everyone else split_names(against),
        rounds=rounds,
        ends=split_names(ends),
        values=split_names(values),
    )
    reports = command.main(options, Console(stderr=True))
    if json_file == Path("-"):
        print(command.to_json(reports))
    else:
        print("\n\n\n".join(map(str, reports)))
    if json_file is not None and json_file != Path("-"):
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(command.to_json(reports) + "\n", encoding="utf-8")
    if results is not None:
        print(f"written to {command.write_results(reports, results)}", file=sys.stderr)
    failed = sorted({name for report in reports for name in report.failed})
    if failed:
        raise UnsupportedError(
            f"installed runtimes that could not be measured: {', '.join(failed)}; the report says "
            "why"
        )


def split_names(text: str) -> tuple[str, ...]:
    """Split comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def split_numbers(option: str, text: str) -> tuple[int, ...]:
    """Split comma-separated whole numbers; a :class:`ConfigError` names ``option``."""
    try:
        return tuple(int(name) for name in split_names(text))
    except ValueError as error:
        raise ConfigError(
            f"{option}: expected whole numbers separated by commas, got {text!r}"
        ) from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _require(module: str, package: str) -> None:
    """Import a module that a command needs, or raise an error that says how to install it."""
    try:
        import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this command needs {module}, which is missing: pip install {package}"
        ) from error


def _has(module: str) -> bool:
    try:
        import_module(module)
    except ModuleNotFoundError:
        return False
    return True


def _load(path: Path) -> Any:
    """Load a network for torch if torch is installed, else for NumPy."""
    import fatnn_rs

    return fatnn_rs.load(path)

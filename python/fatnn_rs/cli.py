"""The command line: ``fatnn info | demo | recipes | train | eval | inspect | run | zoo | bench``.

All commands except ``info``, ``inspect``, ``run`` and ``zoo`` need torch. Figures go to standard
output (as JSON with ``--json``), messages to standard error. Expected errors print one line and
exit with 1; wrong usage exits with 2.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from fatnn_rs.errors import ConfigError, FatnnError, UnsupportedError

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


def _find_network(text: str) -> Path:
    """Return a network's file, which may be given as its name in the zoo."""
    from fatnn_rs import zoo

    if Path(text).is_file():
        return Path(text)
    if text not in zoo.names():
        what = "is a directory" if text and Path(text).is_dir() else "does not exist"
        raise typer.BadParameter(
            f"{text!r} {what}; give a file, or one of the zoo: {', '.join(zoo.names())}"
        )
    return zoo.path(text)


Network = Annotated[
    Path,
    typer.Argument(
        help="A file written by fatnn_rs.save, or a name (see `fatnn zoo`).",
        parser=_find_network,
        metavar="NETWORK",
    ),
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
    except (FatnnError, ImportError, MemoryError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}:", text, file=sys.stderr)
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
    from fatnn_rs.cli_run import train_command
    from fatnn_rs.train.loop import TrainOptions
    from fatnn_rs.train.loop import train as run_recipe
    from fatnn_rs.train.recipe import load_recipe

    given = list(settings or ())
    recipe = load_recipe(config, given if model is None else [f"model={json.dumps(model)}", *given])
    _set_threads(threads)
    options = TrainOptions(
        out=out,
        data=data,
        seed=seed,
        download=download,
        float_from=float_from,
        cpu=cpu,
        command=train_command(config, data, model, given, float_from, seed),
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
    config: Annotated[
        str | None,
        typer.Option(help="A recipe's name or a .yaml file. Default: that of the network's card."),
    ] = None,
    data: DataOption = None,
    settings: SettingsOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 250,
    download: DownloadOption = True,
    as_json: Json = False,
) -> None:
    """Measure a saved network's accuracy on a recipe's test images."""
    _require_training()
    from fatnn_rs.cli_run import measure_accuracy

    measure_accuracy(network, config, settings or (), data, download, batch, as_json)


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
    from fatnn_rs.cli_run import read_report

    report = read_report(network)
    print(report.to_json() if as_json else report)


@app.command()
def run(
    network: Network,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures, or one array, .npy, of the type that the network takes.",
            exists=True,
            dir_okay=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write an array's output here, .npy.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    as_json: Json = False,
) -> None:
    """Classify pictures, or run a network on an array and print the largest output per row."""
    from fatnn_rs.cli_run import run_array, run_pictures

    arrays = [file for file in inputs if file.suffix.lower() == ".npy"]
    if arrays and len(inputs) > 1:
        raise typer.BadParameter(f"{arrays[0]} is an array; give one array, or only pictures")
    if arrays:
        run_array(network, arrays[0], out, as_json)
    elif out is not None:
        raise typer.BadParameter("--out is for arrays: give one .npy file, or leave it away")
    else:
        run_pictures(network, inputs, top, as_json)


@app.command()
def zoo(
    name: Annotated[str | None, typer.Argument(help="Show this network's card.")] = None,
    as_json: Json = False,
) -> None:
    """List the trained networks that come with the package, or show one of them."""
    from fatnn_rs.cli_run import show_zoo

    show_zoo(name, as_json)


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

"""The training loop: a float phase, a ternary phase, a converted network. On accelerate.

Every step depends on the recipe, the seed and the step's number alone, so a run that was killed
goes on from its last checkpoint to the very weights that it would have had: on the same CPU, with
the same number of threads and processes; on a GPU as far as PyTorch's kernels repeat themselves.
Several processes, of one machine or of many, are torchrun's business: the batch is shared out among
them, gradients are averaged. BatchNorm then normalises by each process's share, as in any PyTorch
training, and keeps the first one's statistics; on GPUs it takes them over all of them.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, set_seed
from rich.console import Console
from torch import nn

from fatnn_rs.errors import ConfigError
from fatnn_rs.machine import Machine
from fatnn_rs.prepare import prepare
from fatnn_rs.train.data import Data, ProcessShard, load_data
from fatnn_rs.train.deploy import deploy
from fatnn_rs.train.models import build_model
from fatnn_rs.train.phase import PhaseTrainer, accuracy, check_logits
from fatnn_rs.train.recipe import Phase, Recipe
from fatnn_rs.train.run import Run, identity, read_state

__all__ = ["TrainOptions", "accuracy", "train"]


@dataclass(frozen=True)
class TrainOptions:
    """What a run needs beside its recipe.

    Attributes
    ----------
    out
        Folder of the run (see :mod:`fatnn_rs.train.run`). A run that was interrupted there goes on.
    data
        Folder of the data set, where it needs one.
    seed
        Of the first weights, the order of images and their augmentation.
    download
        Whether torchvision may fetch data that are not there.
    float_from
        A trained float model to start from: a run's ``float.pt`` or any ``state_dict``. Its phase
        is then skipped.
    cpu
        Train on the CPU although there is a GPU.
    checkpoint_seconds
        Time between two checkpoints inside an epoch; there is one after every epoch anyway.
    """

    out: Path
    data: Path | None = None
    seed: int = 0
    download: bool = True
    float_from: Path | None = None
    cpu: bool = False
    checkpoint_seconds: float = 60.0


def train(recipe: Recipe, options: TrainOptions, console: Console | None = None) -> dict[str, Any]:
    """Run a recipe to its end.

    Parameters
    ----------
    recipe
        What to do.
    options
        Where, and from which seed.
    console
        Where progress and warnings go; standard error by default. Only the first of several
        processes writes.

    Returns
    -------
    dict
        The figures of ``result.json``.

    Raises
    ------
    ConfigError
        Options that do not fit each other, the data or what is in ``options.out``.
    InputError
        The data are not there.
    FatnnError
        The loss is no longer finite.
    ConversionError
        The converted network does not compute the trained one's codes.
    """
    has_teacher = (
        recipe.float_phase is not None or options.float_from is not None or recipe.pretrained
    )
    if recipe.ternary is not None and recipe.ternary.distill and not has_teacher:
        raise ConfigError(
            "ternary.distill: there is no trained float model to learn from; give the recipe a float phase, "
            "pretrained=true or --float-from, or set ternary.distill=0"
        )
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(
            True
        )  # else a second run in this process could not have another precision
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision=recipe.mixed_precision or "no",
        log_with=_trackers(),
        project_dir=options.out,
        # The other processes wait while the first one fetches data, or converts and verifies.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision: fp16 needs a GPU; set bf16, or null")
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if recipe.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"batch_size={recipe.batch_size} cannot be shared evenly among {accelerator.num_processes} processes"
        )
    console = console or Console(stderr=True)
    what = identity(
        recipe, options.seed, accelerator.num_processes, torch.get_num_threads(), options.float_from
    )
    with accelerator.main_process_first():
        run = Run(options.out, what, write=accelerator.is_main_process)
    done: dict[str, Any] | None = _from_main(accelerator, lambda: run.result)
    if done is not None:
        return done
    with accelerator.local_main_process_first():
        data = load_data(recipe, options.data, options.download)
    accelerator.init_trackers("tensorboard")
    job = Job(recipe, options, accelerator, run, data, console)
    result = job.everything()
    accelerator.end_training()
    return run.result or {**what, **result}


def _from_main(accelerator: Accelerator, read: Callable[[], Any]) -> Any:
    """Return what the first process reads to all of them: the run's folder may be on its machine alone."""
    values = [read() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def _trackers() -> str | None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return None
    return "tensorboard"


@dataclass
class Job:
    """One run: the parts that all phases share."""

    recipe: Recipe
    options: TrainOptions
    accelerator: Accelerator
    run: Run
    data: Data
    console: Console

    def everything(self) -> dict[str, Any]:
        """Both phases and the conversion."""
        started, recipe, run = time.perf_counter(), self.recipe, self.run
        set_seed(self.options.seed)
        model = build_model(recipe, self.data.classes)
        self._check_classes(model)
        log: list[dict[str, Any]] = []
        result: dict[str, Any] = {}
        if self.options.float_from is not None:
            _load(model, _weights(read_state(self.options.float_from)), self.options.float_from)
        elif recipe.float_phase is not None:
            self.phase("float", recipe.float_phase, model, None, log)
        if (
            recipe.float_phase is not None
            or self.options.float_from is not None
            or recipe.pretrained
        ):
            result["float_accuracy"] = accuracy(model, self.data, self.accelerator)
        if recipe.ternary is not None:
            teacher = (
                copy.deepcopy(model).eval().requires_grad_(False)
                if recipe.ternary.distill
                else None
            )
            self.prepare(model)
            self.phase("ternary", recipe.ternary, model, teacher, log)
            result["ternary_accuracy"] = accuracy(model, self.data, self.accelerator)
        result["log"] = log
        if self.accelerator.is_main_process:
            if recipe.ternary is not None:
                result |= deploy(
                    model.cpu().eval(),
                    self.data,
                    run.folder / "net.safetensors",
                    recipe.verify_images,
                )
            result["seconds"] = round(time.perf_counter() - started, 1)
            run.finish({**run.identity, **result, "machine": asdict(Machine.current())})
            run.discard("checkpoint")
        self.accelerator.wait_for_everyone()
        return result

    def prepare(self, model: nn.Module) -> None:
        """Make a float model ternary; activation steps come from the first training images, the same everywhere."""
        quantize, batch = self.recipe.quantize, self.recipe.batch_size
        wanted = math.ceil(quantize.calibration_images / batch)
        batches = self.data.train_batches(self.options.seed, 0, batch, 0, ProcessShard())
        images = torch.cat([x for _, (x, _) in zip(range(wanted), batches, strict=False)])
        device = self.accelerator.device
        prepare(
            model.to(device), quantize.config(), images[: quantize.calibration_images].to(device)
        )

    def phase(
        self,
        name: str,
        phase: Phase,
        model: nn.Module,
        teacher: nn.Module | None,
        log: list[dict[str, Any]],
    ) -> None:
        """Train ``model`` in place, from where a checkpoint says, to the end of the phase."""
        run, accelerator = self.run, self.accelerator
        if (finished := _from_main(accelerator, lambda: run.load(name))) is not None:
            _load(model, finished["model"], run.folder / f"{name}.pt")
            log[:] = finished["log"]
            return
        state = _from_main(accelerator, lambda: run.load("checkpoint"))
        state = state if state is not None and state["phase"] == name else None
        if state is not None:
            _load(model, state["model"], run.folder / "checkpoint.pt")
            log[:] = state["log"]
        PhaseTrainer(self, name, phase, model, teacher, log, state)()
        accelerator.free_memory()  # what it knows of this phase's optimizer would take part in the next one
        if accelerator.is_main_process:
            run.save(
                name,
                {
                    "model": {key: value.cpu() for key, value in model.state_dict().items()},
                    "log": log,
                },
            )
        accelerator.wait_for_everyone()

    def _check_classes(self, model: nn.Module) -> None:
        """Compare the model's outputs with the data's classes before hours are spent."""
        was, what = model.training, f"model {self.recipe.model!r}"
        try:
            with torch.no_grad():
                logits = model.eval()(torch.zeros(1, *self.data.shape))
        except Exception as error:  # models raise what they like
            raise ConfigError(
                f"{what} does not take the images of data set {self.data.name!r}, "
                f"{'x'.join(map(str, self.data.shape))} ({type(error).__name__}: {error}); choose another, or see "
                "model_options and image_size"
            ) from error
        model.train(was)
        check_logits(what, logits)
        if logits.shape[1] != self.data.classes:
            raise ConfigError(
                f"{what} gives {logits.shape[1]} outputs, but data set {self.data.name!r} has {self.data.classes} "
                "classes; set pretrained=false (torchvision's weights are for 1000), or use one of timm's, which take "
                "any number"
            )


def _weights(state: dict[str, Any]) -> dict[str, Any]:
    """Take the model out of a run's checkpoint, or a bare ``state_dict`` as it is."""
    inner = state.get("model")
    return inner if isinstance(inner, dict) else state


def _load(model: nn.Module, weights: dict[str, Any], source: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{source} does not fit the recipe's model: {text[:300]}") from error

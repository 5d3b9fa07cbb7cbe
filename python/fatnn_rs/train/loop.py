"""The training loop, on accelerate: a float phase, a ternary phase, and a converted network.

Every iteration depends only on the recipe, the seed and its index. So a killed run resumes from its
last checkpoint and ends with the same weights, given the same CPU, threads and processes (on a GPU,
as far as PyTorch's kernels are deterministic). Several processes, started by torchrun, split each
batch and average gradients. On CPUs, BatchNorm normalises each process's part separately and keeps
the statistics of the first process; on GPUs, it uses statistics over all processes.
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
from torch import Tensor, nn

from fatnn_rs.card import Card
from fatnn_rs.errors import ConfigError
from fatnn_rs.machine import Machine
from fatnn_rs.models.cifar_fast import whiten_
from fatnn_rs.nn.mixed import fast_convolutions
from fatnn_rs.prepare import prepare
from fatnn_rs.train.data import Data, ProcessShard, load_data
from fatnn_rs.train.deploy import deploy
from fatnn_rs.train.models import build_model
from fatnn_rs.train.phase import PhaseTrainer, accuracy, check_logits
from fatnn_rs.train.recipe import Recipe
from fatnn_rs.train.run import Run, identity, load_weights, read_state
from fatnn_rs.train.sections import Phase

if torch.distributed.is_available():
    # Its functions have the process group at the time of the import as a default argument. Import
    # it before there is one (DDP imports it): the group and its threads would otherwise outlive
    # destroy_process_group, until the interpreter ends, and can abort the process there.
    import torch.distributed.nn

__all__ = ["TrainOptions", "accuracy", "train"]


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a run that are not part of its recipe.

    Attributes
    ----------
    out
        Directory of the run (see :mod:`fatnn_rs.train.run`). An interrupted run there is resumed.
    data
        Directory of the data set, if it needs one.
    seed
        Seed of the initial weights, the order of images and their augmentation.
    download
        Whether torchvision may download missing data.
    float_from
        A trained float model to start from: a run's ``float.pt`` or any ``state_dict``. The float
        phase is then skipped.
    cpu
        Train on the CPU even if there is a GPU.
    checkpoint_seconds
        Time between two checkpoints inside an epoch. There is one after every epoch, too.
    command
        The command line, for the network's card.
    """

    out: Path
    data: Path | None = None
    seed: int = 0
    download: bool = True
    float_from: Path | None = None
    cpu: bool = False
    checkpoint_seconds: float = 60.0
    command: str = ""


def train(recipe: Recipe, options: TrainOptions, console: Console | None = None) -> dict[str, Any]:
    """Run a recipe to its end, or resume it.

    Parameters
    ----------
    recipe
        What to train.
    options
        Directory, seed and other settings.
    console
        Console for progress and warnings; standard error by default. Only the first process
        writes.

    Returns
    -------
    dict
        The figures of ``result.json``.

    Raises
    ------
    ConfigError
        Options contradict each other, the data or the run in ``options.out``.
    InputError
        The data are missing.
    FatnnError
        The loss or a parameter is no longer finite, or the GPU's memory is too small.
    ConversionError
        The converted network computes other codes than the trained model.
    """
    has_teacher = (
        recipe.float_phase is not None or options.float_from is not None or recipe.pretrained
    )
    if recipe.ternary is not None and recipe.ternary.distill and not has_teacher:
        raise ConfigError(
            "ternary.distill: there is no trained float model to learn from; give the recipe a "
            "float phase, pretrained=true or --float-from, or set ternary.distill=0"
        )
    # Without a reset, a second run in this process could not have another precision.
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(True)
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision=recipe.mixed_precision or "no",
        log_with=_trackers(),
        project_dir=options.out,
        # Other processes wait while the first one downloads data, or converts and verifies.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision: fp16 needs a GPU; set bf16, or null")
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    for option, size in recipe.batch_sizes().items():
        if size % accelerator.num_processes:
            raise ConfigError(
                f"{option}={size} cannot be shared evenly among {accelerator.num_processes} "
                "processes; make it a multiple of them"
            )
    console = console or Console(stderr=True)
    what = identity(
        recipe, options.seed, accelerator.num_processes, torch.get_num_threads(), options.float_from
    )
    with accelerator.main_process_first():
        run = Run(options.out, what, write=accelerator.is_main_process)
    done: dict[str, Any] | None = _from_main(accelerator, lambda: run.result)
    if done is not None:
        accelerator.end_training()
        return done
    try:
        with accelerator.local_main_process_first():
            data = load_data(recipe, options.data, options.download)
    except Exception:
        run.release()
        raise
    accelerator.init_trackers("tensorboard")
    job = Job(recipe, options, accelerator, run, data, console)
    result = job.train_and_deploy()
    accelerator.end_training()
    return run.result or {**what, **result}


def _from_main(accelerator: Accelerator, read: Callable[[], Any]) -> Any:
    """Read on the first process and broadcast: other machines may lack the run's directory."""
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
    """One run: what its phases share."""

    recipe: Recipe
    options: TrainOptions
    accelerator: Accelerator
    run: Run
    data: Data
    console: Console

    def train_and_deploy(self) -> dict[str, Any]:
        """Run both phases and the conversion."""
        started, recipe, run = time.perf_counter(), self.recipe, self.run
        set_seed(self.options.seed)
        model = build_model(recipe, self.data.classes)
        self._check_classes(model)
        if recipe.whiten_images:
            self.whiten(model)
        log: list[dict[str, Any]] = []
        result: dict[str, Any] = {}
        if self.options.float_from is not None:
            file = self.options.float_from
            load_weights(model, read_state(file), file)
        elif recipe.float_phase is not None:
            self.train_phase("float", recipe.float_phase, model, None, log)
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
            model = self.prepare(model)
            self.train_phase("ternary", recipe.ternary, model, teacher, log)
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
            machine = asdict(Machine.current())
            if "file_bytes" in result:
                run.write_card(self._card(result, machine))
            run.finish({**run.identity, **result, "machine": machine})
            run.discard("checkpoint")
        self.accelerator.wait_for_everyone()
        return result

    def _card(self, result: dict[str, Any], machine: dict[str, Any]) -> Card:
        """Describe the converted network."""
        return Card(
            description=self.recipe.description,
            classes=self.data.class_names,
            image=self.data.image_input,
            data=self.recipe.data,
            test_images=self.data.test_count,
            accuracy=result["rust_accuracy"],
            float_accuracy=result.get("float_accuracy"),
            recipe=self.recipe.to_json(),
            seed=self.options.seed,
            command=self.options.command,
            machine={key: machine[key] for key in ("cpu", "commit", "date", "versions")},
        )

    def images(self, count: int) -> Tensor:
        """Return the first training images of the first epoch, the same in every process."""
        batch = min(self.recipe.batch_size, self.data.train_count)
        batches = self.data.train_batches(self.options.seed, 0, batch, 0, ProcessShard())
        wanted = math.ceil(count / batch)
        return torch.cat([x for _, (x, _) in zip(range(wanted), batches, strict=False)])[:count]

    def whiten(self, model: nn.Module) -> None:
        """Set and freeze the first convolution's filters: see ``Recipe.whiten_images``."""
        convolutions = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        if (first := next(convolutions, None)) is None:
            raise ConfigError(
                f"whiten_images: model {self.recipe.model!r} has no Conv2d; set whiten_images=0"
            )
        whiten_(first, self.images(self.recipe.whiten_images))

    def prepare(self, model: nn.Module) -> nn.Module:
        """Make a float model ternary, calibrated in every process with the same images."""
        quantize = self.recipe.quantize
        # Graphs are captured on the CPU.
        device = torch.device("cpu") if quantize.values == "int8" else self.accelerator.device
        images = self.images(quantize.calibration_images).to(device)
        return prepare(model.to(device), quantize.config(), images)

    def train_phase(
        self,
        name: str,
        phase: Phase,
        model: nn.Module,
        teacher: nn.Module | None,
        log: list[dict[str, Any]],
    ) -> None:
        """Train ``model`` in place to the end of the phase, from a checkpoint if there is one."""
        run, accelerator = self.run, self.accelerator
        if (finished := _from_main(accelerator, lambda: run.load(name))) is not None:
            load_weights(model, finished, run.folder / f"{name}.pt")
            # As training leaves it: calibration adds in another order for other strides.
            model.to(accelerator.device).to(memory_format=torch.channels_last)
            log[:] = finished["log"]
            return
        state = _from_main(accelerator, lambda: run.load("checkpoint"))
        state = state if state is not None and state["phase"] == name else None
        if state is not None:
            load_weights(model, state, run.folder / "checkpoint.pt")
            log[:] = state["log"]
        with fast_convolutions(self.recipe.fast_convolutions):
            PhaseTrainer(self, name, phase, model, teacher, log, state)()
        # Forget this phase's optimizer; the next phase would otherwise use it, too.
        accelerator.free_memory()
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
        """Check, before training, that the model takes the images and has an output per class."""
        was, what = model.training, f"model {self.recipe.model!r}"
        try:
            with torch.no_grad():
                logits = model.eval()(torch.zeros(1, *self.data.shape))
        except Exception as error:  # A model may raise anything.
            raise ConfigError(
                f"{what} does not take the images of data set {self.data.name!r}, "
                f"{'x'.join(map(str, self.data.shape))} ({type(error).__name__}: {error}); choose "
                "another, or see model_options and image_size"
            ) from error
        model.train(was)
        check_logits(what, logits)
        if logits.shape[1] != self.data.classes:
            raise ConfigError(
                f"{what} gives {logits.shape[1]} outputs, but data set {self.data.name!r} has "
                f"{self.data.classes} classes; set pretrained=false (torchvision's weights are for "
                "1000), or use one of timm's, which take any number"
            )

"""The training loop: a float phase, a ternary phase, a converted network. On accelerate; one file, to be read.

Every step depends on the recipe, the seed and the step's number alone, so a run that was killed goes on from its last
checkpoint to the very weights that it would have had: on the same CPU, with the same number of threads and processes;
on a GPU as far as PyTorch's kernels repeat themselves. Several processes, of one machine or of many, are torchrun's
business: the batch is shared out among them, gradients are averaged. BatchNorm then normalises by each process's share,
as in any PyTorch training, and keeps the first one's statistics; on GPUs it takes them over all of them.
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
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from fatnn_rs.errors import ConfigError, FatnnError
from fatnn_rs.machine import here
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.prepare import param_groups, prepare
from fatnn_rs.train.data import Data, Share, load_data
from fatnn_rs.train.deploy import deploy
from fatnn_rs.train.models import build_model
from fatnn_rs.train.monitor import CodeMonitor
from fatnn_rs.train.recipe import Phase, Recipe
from fatnn_rs.train.run import Run, identity, read_state

__all__ = ["TrainOptions", "accuracy", "train"]

_TEST_BATCH = 500


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
        A trained float model to start from: a run's ``float.pt`` or any ``state_dict``. Its phase is then skipped.
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
        Where progress and warnings go; standard error by default. Only the first of several processes writes.

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
    has_teacher = recipe.float_phase is not None or options.float_from is not None or recipe.pretrained
    if recipe.ternary is not None and recipe.ternary.distill and not has_teacher:
        raise ConfigError(
            "ternary.distill: there is no trained float model to learn from; give the recipe a float phase, "
            "pretrained=true or --float-from, or set ternary.distill=0"
        )
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(True)  # else a second run in this process could not have another precision
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
    what = identity(recipe, options.seed, accelerator.num_processes, torch.get_num_threads(), options.float_from)
    with accelerator.main_process_first():
        run = Run(options.out, what, write=accelerator.is_main_process)
    done: dict[str, Any] | None = _from_main(accelerator, lambda: run.result)
    if done is not None:
        return done
    with accelerator.local_main_process_first():
        data = load_data(recipe, options.data, options.download)
    accelerator.init_trackers("tensorboard")
    job = _Job(recipe, options, accelerator, run, data, console)
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
class _Job:
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
        if recipe.float_phase is not None or self.options.float_from is not None or recipe.pretrained:
            result["float_accuracy"] = accuracy(model, self.data, self.accelerator)
        if recipe.ternary is not None:
            teacher = copy.deepcopy(model).eval().requires_grad_(False) if recipe.ternary.distill else None
            self.prepare(model)
            self.phase("ternary", recipe.ternary, model, teacher, log)
            result["ternary_accuracy"] = accuracy(model, self.data, self.accelerator)
        result["log"] = log
        if self.accelerator.is_main_process:
            if recipe.ternary is not None:
                result |= deploy(model.cpu().eval(), self.data, run.folder / "net.safetensors", recipe.verify_images)
            result["seconds"] = round(time.perf_counter() - started, 1)
            run.finish({**run.identity, **result, "machine": asdict(here())})
            run.discard("checkpoint")
        self.accelerator.wait_for_everyone()
        return result

    def prepare(self, model: nn.Module) -> None:
        """Make a float model ternary; activation steps come from the first training images, the same everywhere."""
        quantize, batch = self.recipe.quantize, self.recipe.batch_size
        wanted = math.ceil(quantize.calibration_images / batch)
        batches = self.data.train_batches(self.options.seed, 0, batch, 0, Share())
        images = torch.cat([x for _, (x, _) in zip(range(wanted), batches, strict=False)])
        device = self.accelerator.device
        prepare(model.to(device), quantize.config(), images[: quantize.calibration_images].to(device))

    def phase(
        self, name: str, phase: Phase, model: nn.Module, teacher: nn.Module | None, log: list[dict[str, Any]]
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
        _Fit(self, name, phase, model, teacher, log, state)()
        accelerator.free_memory()  # what it knows of this phase's optimizer would take part in the next one
        if accelerator.is_main_process:
            run.save(name, {"model": {key: value.cpu() for key, value in model.state_dict().items()}, "log": log})
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
        _check_logits(what, logits)
        if logits.shape[1] != self.data.classes:
            raise ConfigError(
                f"{what} gives {logits.shape[1]} outputs, but data set {self.data.name!r} has {self.data.classes} "
                "classes; set pretrained=false (torchvision's weights are for 1000), or use one of timm's, which take "
                "any number"
            )


class _Fit:
    """One phase of training."""

    def __init__(
        self,
        job: _Job,
        name: str,
        phase: Phase,
        model: nn.Module,
        teacher: nn.Module | None,
        log: list[dict[str, Any]],
        state: dict[str, Any] | None,
    ) -> None:
        self.job, self.name, self.phase, self.raw, self.log = job, name, phase, model, log
        recipe, accelerator = job.recipe, job.accelerator
        self.batches = job.data.train_count // recipe.batch_size
        self.monitor = CodeMonitor(model)
        # Channels last: what convolutions are fastest on, CPU or GPU. Only memory changes.
        model.to(accelerator.device).to(memory_format=torch.channels_last)
        shared = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
        self.own_norms = _share_norms(model) if shared else {}
        if accelerator.scaler is not None:  # one for all phases: begins each as if it were the first
            accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
        optimizer = _optimizer(phase, model)
        self.schedule = _schedule(phase, optimizer, self.batches)
        model.train()
        compiled: Any = torch.compile(model) if recipe.compile else model
        # In a shell of its own: accelerate changes the forward of what it is given, and the model stays as it is.
        self.model, self.optimizer = accelerator.prepare(nn.Sequential(compiled), optimizer)
        self.teacher: Callable[[Tensor], Tensor] | None = None
        if teacher is not None:
            teacher.to(accelerator.device).to(memory_format=torch.channels_last)
            self.teacher = torch.compile(teacher) if recipe.compile else teacher
        self.epoch, self.batch, self.loss = 0, 0, 0.0
        if state is not None:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.monitor.load_state_dict(state["monitor"])
        if state["scaler"]:
            self.job.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch, self.loss = state["epoch"], state["batch"], state["loss"]

    def _checkpoint(self) -> None:
        if self.job.accelerator.is_main_process:
            self.job.run.save(
                "checkpoint",
                {
                    "phase": self.name,
                    "model": self.raw.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(),
                    "monitor": self.monitor.state_dict(),
                    "scaler": {} if self.job.accelerator.scaler is None else self.job.accelerator.scaler.state_dict(),
                    "epoch": self.epoch,
                    "batch": self.batch,
                    "loss": self.loss,
                    "log": self.log,
                },
            )

    def __call__(self) -> None:
        """Train to the end of the phase."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        quiet = not self.job.accelerator.is_main_process
        with Progress(*columns, console=self.job.console, disable=quiet, transient=True) as progress:
            total = self.phase.epochs * self.batches
            task = progress.add_task(f"{self.name} training", total=total, note="")
            try:
                while self.epoch < self.phase.epochs:
                    self._epoch(progress, task)
            except torch.OutOfMemoryError as error:
                raise FatnnError(
                    f"{self.name} phase: the GPU has too little memory ({str(error).splitlines()[0]}); lower "
                    "batch_size or image_size, or set mixed_precision=bf16"
                ) from error
        _restore_norms(self.raw, self.own_norms)

    def _epoch(self, progress: Progress, task: TaskID) -> None:
        job, share = self.job, Share(self.job.accelerator.process_index, self.job.accelerator.num_processes)
        seed, size = job.options.seed, job.recipe.batch_size
        # The two phases see different orders.
        source = job.data.train_batches(
            seed + (1 << 20) * (self.name == "ternary"), self.epoch, size, self.batch, share
        )
        written = time.monotonic()
        self.raw.train()
        for x, y in source:
            self.loss += self._step(x, y)
            self.batch += 1
            done = self.epoch * self.batches + self.batch
            progress.update(task, completed=done, note=f"epoch {self.epoch + 1}, loss {self.loss / self.batch:.4f}")
            if time.monotonic() - written >= job.options.checkpoint_seconds and self.batch < self.batches:
                self._checkpoint()
                written = time.monotonic()
        self._end_of_epoch(progress)
        self.epoch, self.batch, self.loss = self.epoch + 1, 0, 0.0
        self._checkpoint()

    def _step(self, x: Tensor, y: Tensor) -> float:
        accelerator, phase = self.job.accelerator, self.phase
        # What draws numbers inside the model (dropout) draws the same ones after a resumption.
        torch.manual_seed(
            hash((self.job.options.seed, self.epoch, self.batch, accelerator.process_index)) & (2**63 - 1)
        )
        x = x.to(accelerator.device, memory_format=torch.channels_last)
        y = y.to(accelerator.device)
        with accelerator.autocast():
            logits = self.model(x)
        _check_logits(f"model {self.job.recipe.model!r}, in training mode,", logits)
        loss = functional.cross_entropy(logits.float(), y, label_smoothing=phase.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad(), accelerator.autocast():
                answers = self.teacher(x).float()
            loss = (1.0 - phase.distill) * loss + phase.distill * _divergence(
                logits.float(), answers, phase.temperature
            )
        value = loss.item()
        if accelerator.num_processes > 1:  # so that all of them see, log and refuse the same
            value = float(accelerator.reduce(loss.detach(), reduction="mean"))
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        if phase.clip is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), phase.clip)
        self.optimizer.step()
        self.schedule.step()
        return value

    def _diverged(self, what: str) -> FatnnError:
        return FatnnError(
            f"{self.name} phase: {what} in epoch {self.epoch + 1}, batch {self.batch + 1}; lower lr (now "
            f"{self.schedule.get_last_lr()[0]:g}), lengthen warmup_epochs or set clip, and start again with another "
            "--out"
        )

    def _end_of_epoch(self, progress: Progress) -> None:
        """Measure, look into the layers, log."""
        for name, parameter in self.raw.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} became NaN or infinite")
        job, accelerator = self.job, self.job.accelerator
        if accelerator.num_processes > 1:  # BatchNorm's statistics: the first process's, as at every step's beginning
            for buffer in self.raw.buffers():
                torch.distributed.broadcast(buffer, 0)
        line: dict[str, Any] = {
            "phase": self.name,
            "epoch": self.epoch + 1,
            "loss": self.loss / self.batches,
            "lr": self.schedule.get_last_lr()[0],
            "test_accuracy": accuracy(self.raw, job.data, accelerator),
        }
        if accelerator.is_main_process and self.monitor.layers:
            images = next(iter(job.data.test_batches(job.recipe.monitor.images)))[0]
            states = self.monitor.look(images.to(accelerator.device))
            line["warnings"] = [text for state in states for text in state.warnings(job.recipe.monitor.dead)]
            line["layers"] = {key: value for state in states for key, value in state.scalars().items()}
        self.log.append(line)
        if accelerator.is_main_process:
            job.run.log(self.log)
            for warning in line.get("warnings", ()):
                progress.console.print(f"warning: epoch {self.epoch + 1}: {warning}", style="yellow", highlight=False)
            progress.console.print(
                f"{self.name} epoch {self.epoch + 1}/{self.phase.epochs}: loss {line['loss']:.4f}, test accuracy "
                f"{line['test_accuracy']:.2%}",
                highlight=False,
            )
        figures = {f"{self.name}/{key}": line[key] for key in ("loss", "lr", "test_accuracy")}
        accelerator.log(figures | line.get("layers", {}), step=len(self.log))


def _optimizer(phase: Phase, model: nn.Module) -> torch.optim.Optimizer:
    groups = param_groups(model, phase.weight_decay)
    if phase.decay_all:
        groups = [{**group, "weight_decay": phase.weight_decay} for group in groups]
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=phase.lr)
    return torch.optim.SGD(groups, lr=phase.lr, momentum=phase.momentum, nesterov=phase.momentum > 0)


def _schedule(phase: Phase, optimizer: torch.optim.Optimizer, batches: int) -> LRScheduler:
    """One step of the schedule is one step of the optimizer."""
    total, warmup = phase.epochs * batches, round(phase.warmup_epochs * batches)
    after = max(1, total - warmup)
    main: LRScheduler
    if phase.schedule == "cosine":
        main = CosineAnnealingLR(optimizer, after)
    elif phase.schedule == "step":
        places = [max(1, round(epoch * batches) - warmup) for epoch in phase.milestones]
        main = MultiStepLR(optimizer, places, phase.gamma)
    else:
        main = ConstantLR(optimizer, 1.0, 1)
    if not warmup:
        return main
    return SequentialLR(optimizer, [LinearLR(optimizer, 1.0 / (warmup + 1), 1.0, warmup), main], [warmup])


def _divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times temperature squared (G. Hinton et al., 1503.02531)."""
    student, teacher = (functional.log_softmax(value / temperature, dim=1) for value in (logits, answers))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, accelerator: Accelerator | None = None) -> float:
    """Share of the test images that ``model``, in eval mode, classifies right; over all processes."""
    if accelerator is not None:
        model.to(accelerator.device)
    device = next(model.parameters()).device
    share = Share() if accelerator is None else Share(accelerator.process_index, accelerator.num_processes)
    training = model.training
    right = torch.zeros((), device=device)
    with held_weights(model.eval()):
        for x, y in data.test_batches(_TEST_BATCH, share):
            logits = model(x.to(device, memory_format=torch.channels_last))
            right += (logits.argmax(1) == y.to(device)).sum()
    model.train(training)
    if accelerator is not None and accelerator.num_processes > 1:
        right = accelerator.reduce(right, reduction="sum")
    return float(right) / data.test_count


def _check_logits(what: str, logits: Any) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{what} must return logits [images, classes], got {got}; recipes train classifiers")


def _share_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Let BatchNorm take its statistics over all processes; return the original ones by name.

    Exact types only: a subclass, as timm's with their activation inside, does more than torch's replacement.
    """
    own: dict[str, nn.Module] = {}
    for path, module in list(model.named_modules()):
        for name, child in module.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                own[f"{path}.{name}" if path else name] = child
                setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
    return own


def _restore_norms(model: nn.Module, own: dict[str, nn.Module]) -> None:
    """Put the original ones back, which ``prepare`` and ``convert`` know, with the statistics that were taken."""
    for path, norm in own.items():
        parent, _, name = path.rpartition(".")
        shared = getattr(model.get_submodule(parent), name)
        norm.load_state_dict(shared.state_dict())
        norm.train(shared.training)
        setattr(model.get_submodule(parent), name, norm)


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

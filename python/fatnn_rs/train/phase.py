"""One phase of training: iterations, figures per epoch, and checkpoints inside an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)
from torch.optim.swa_utils import update_bn

from fatnn_rs.errors import ConfigError, FatnnError
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.train.data import Data, ProcessShard
from fatnn_rs.train.monitor import CodeMonitor
from fatnn_rs.train.optimizer import build_optimizer
from fatnn_rs.train.sections import Phase

if TYPE_CHECKING:
    from fatnn_rs.train.loop import Job

__all__ = ["PhaseTrainer", "accuracy", "check_logits"]

_TEST_BATCH = 500


class PhaseTrainer:
    """Trains a model for one phase of a recipe. Called by :class:`fatnn_rs.train.loop.Job`."""

    def __init__(
        self,
        job: Job,
        name: str,
        phase: Phase,
        model: nn.Module,
        teacher: nn.Module | None,
        log: list[dict[str, Any]],
        state: dict[str, Any] | None,
    ) -> None:
        self.job, self.name, self.phase, self.raw, self.log = job, name, phase, model, log
        recipe, accelerator = job.recipe, job.accelerator
        self.batch_size = recipe.batch_size_of(phase)
        self.batches = job.data.train_count // self.batch_size
        self.monitor = CodeMonitor(model)
        # Channels last is the fastest layout for convolutions, on CPUs and GPUs.
        model.to(accelerator.device).to(memory_format=torch.channels_last)
        several_gpus = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
        self.local_norms = _sync_batch_norms(model) if several_gpus else {}
        # One gradient scaler serves all phases: reset it.
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(
                torch.amp.GradScaler(accelerator.device.type).state_dict()
            )
        optimizer = build_optimizer(phase, model)
        self.schedule = _schedule(phase, optimizer, self.batches)
        model.train()
        compiled: Any = torch.compile(model) if recipe.compile else model
        # accelerate changes the forward of the module it gets: give it a wrapper, not the model.
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
                    "scaler": {}
                    if self.job.accelerator.scaler is None
                    else self.job.accelerator.scaler.state_dict(),
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
        with Progress(
            *columns, console=self.job.console, disable=quiet, transient=True
        ) as progress:
            total = self.phase.epochs * self.batches
            task = progress.add_task(f"{self.name} training", total=total, note="")
            try:
                while self.epoch < self.phase.epochs:
                    self._train_epoch(progress, task)
            except torch.OutOfMemoryError as error:
                raise FatnnError(
                    f"{self.name} phase: the GPU has too little memory "
                    f"({str(error).splitlines()[0]}); lower the batch size or image_size, or set "
                    "mixed_precision=bf16"
                ) from error
        _restore_batch_norms(self.raw, self.local_norms)

    def _train_epoch(self, progress: Progress, task: TaskID) -> None:
        job = self.job
        shard = ProcessShard(job.accelerator.process_index, job.accelerator.num_processes)
        seed, size = job.options.seed, self.batch_size
        # The two phases see different orders of images.
        source = job.data.train_batches(
            seed + (1 << 20) * (self.name == "ternary"), self.epoch, size, self.batch, shard
        )
        written = started = time.monotonic()
        first = self.batch
        self.raw.train()
        for x, y in source:
            self.loss += self._train_batch(x, y)
            self.batch += 1
            done = self.epoch * self.batches + self.batch
            progress.update(
                task,
                completed=done,
                note=f"epoch {self.epoch + 1}, loss {self.loss / self.batch:.4f}",
            )
            if (
                time.monotonic() - written >= job.options.checkpoint_seconds
                and self.batch < self.batches
            ):
                self._checkpoint()
                written = time.monotonic()
        # Printed, not logged: a run that was resumed has the log of one that was not.
        speed = (self.batch - first) * size / max(time.monotonic() - started, 1e-9)
        self._end_of_epoch(progress, f"{speed:.0f} images/s")
        self.epoch, self.batch, self.loss = self.epoch + 1, 0, 0.0
        self._checkpoint()

    def _train_batch(self, x: Tensor, y: Tensor) -> float:
        accelerator, phase = self.job.accelerator, self.phase
        # Seed every batch, so that dropout draws the same numbers after a resumption.
        torch.manual_seed(
            hash((self.job.options.seed, self.epoch, self.batch, accelerator.process_index))
            & (2**63 - 1)
        )
        x = x.to(accelerator.device, memory_format=torch.channels_last)
        y = y.to(accelerator.device)
        with accelerator.autocast():
            logits = self.model(x)
        check_logits(f"model {self.job.recipe.model!r}, in training mode,", logits)
        loss = functional.cross_entropy(logits.float(), y, label_smoothing=phase.label_smoothing)
        if self.teacher is not None and phase.distills(self.epoch):
            with torch.no_grad(), accelerator.autocast():
                answers = self.teacher(x).float()
            loss = (1.0 - phase.distill) * loss + phase.distill * _divergence(
                logits.float(), answers, phase.temperature
            )
        value = loss.item()
        if accelerator.num_processes > 1:  # Every process must see and log the same loss.
            value = float(accelerator.reduce(loss.detach(), reduction="mean"))
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        if self._frozen():
            for layer in self.monitor.layers.values():
                for parameter in layer.code_parameters():
                    parameter.grad = None  # Optimizers skip it, weight decay included.
        if phase.clip is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), phase.clip)
        self.optimizer.step()
        self.schedule.step()
        return value

    def _frozen(self) -> bool:
        """Whether the codes of weights stay as they are in this epoch."""
        return self.epoch >= self.phase.epochs - self.phase.freeze_epochs

    def _diverged(self, what: str) -> FatnnError:
        return FatnnError(
            f"{self.name} phase: {what} in epoch {self.epoch + 1}, batch {self.batch + 1}; lower "
            f"lr (now {self.schedule.get_last_lr()[0]:g}), lengthen warmup_epochs or set clip, and "
            "start again with another --out"
        )

    def _estimate_norms(self, count: int) -> None:
        """Compute BatchNorm's statistics from training images, the same in every process."""
        images, device = self.job.images(count), self.job.accelerator.device
        parts = (images[at : at + _TEST_BATCH] for at in range(0, len(images), _TEST_BATCH))
        with held_weights(self.raw), torch.no_grad():
            update_bn((x.to(device, memory_format=torch.channels_last) for x in parts), self.raw)

    def _end_of_epoch(self, progress: Progress, speed: str) -> None:
        """Measure the accuracy, monitor the layers, and log both."""
        for name, parameter in self.raw.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} became NaN or infinite")
        job, accelerator = self.job, self.job.accelerator
        # BatchNorm keeps the statistics of the first process.
        if accelerator.num_processes > 1:
            for buffer in self.raw.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self.epoch + 1 == self.phase.epochs and self.phase.norm_images:
            self._estimate_norms(self.phase.norm_images)
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
            if self._frozen():  # That no code flips is no reason to warn.
                states = [replace(state, flips=state.flips or None) for state in states]
            line["warnings"] = [
                text for state in states for text in state.warnings(job.recipe.monitor.dead)
            ]
            line["layers"] = {
                key: value for state in states for key, value in state.scalars().items()
            }
        self.log.append(line)
        if accelerator.is_main_process:
            job.run.log(self.log)
            for warning in line.get("warnings", ()):
                progress.console.print(
                    f"warning: epoch {self.epoch + 1}: {warning}", style="yellow", highlight=False
                )
            progress.console.print(
                f"{self.name} epoch {self.epoch + 1}/{self.phase.epochs}: loss {line['loss']:.4f}, "
                f"test accuracy {line['test_accuracy']:.2%}, {speed}",
                highlight=False,
            )
        figures = {f"{self.name}/{key}": line[key] for key in ("loss", "lr", "test_accuracy")}
        accelerator.log(figures | line.get("layers", {}), step=len(self.log))


def _schedule(phase: Phase, optimizer: torch.optim.Optimizer, batches: int) -> LRScheduler:
    """Return the learning rate schedule, in units of optimizer iterations."""
    total, warmup = phase.epochs * batches, round(phase.warmup_epochs * batches)
    after = max(1, total - warmup)
    main: LRScheduler
    if phase.schedule == "cosine":
        main = CosineAnnealingLR(optimizer, after)
    elif phase.schedule == "linear":
        main = LinearLR(optimizer, 1.0, 0.0, after)
    elif phase.schedule == "step":
        places = [max(1, round(epoch * batches) - warmup) for epoch in phase.milestones]
        main = MultiStepLR(optimizer, places, phase.gamma)
    else:
        main = ConstantLR(optimizer, 1.0, 1)
    if not warmup:
        return main
    return SequentialLR(
        optimizer, [LinearLR(optimizer, 1.0 / (warmup + 1), 1.0, warmup), main], [warmup]
    )


def _divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Distillation loss: KL divergence of softened outputs, times temperature² (1503.02531)."""
    student, teacher = (
        functional.log_softmax(value / temperature, dim=1) for value in (logits, answers)
    )
    return (
        functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, accelerator: Accelerator | None = None) -> float:
    """Fraction of the test images that ``model`` classifies correctly in eval mode.

    With several processes, each runs its part, and all get the result.
    """
    if accelerator is not None:
        model.to(accelerator.device)
    device = next(model.parameters()).device
    shard = (
        ProcessShard()
        if accelerator is None
        else ProcessShard(accelerator.process_index, accelerator.num_processes)
    )
    training = model.training
    right = torch.zeros((), device=device)
    with held_weights(model.eval()):
        for x, y in data.test_batches(_TEST_BATCH, shard):
            logits = model(x.to(device, memory_format=torch.channels_last))
            right += (logits.argmax(1) == y.to(device)).sum()
    model.train(training)
    if accelerator is not None and accelerator.num_processes > 1:
        right = accelerator.reduce(right, reduction="sum")
    return float(right) / data.test_count


def check_logits(what: str, logits: Any) -> None:
    """Raise a :class:`ConfigError` unless ``logits`` is a tensor with one row per image."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"{what} must return logits [images, classes], got {got}; recipes train classifiers"
        )


def _sync_batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Replace BatchNorm by SyncBatchNorm; return the original modules by name.

    Subclasses, such as timm's with a built-in activation, stay: torch's replacement would drop
    what they add.
    """
    own: dict[str, nn.Module] = {}
    for path, module in list(model.named_modules()):
        for name, child in module.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                own[f"{path}.{name}" if path else name] = child
                setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
    return own


def _restore_batch_norms(model: nn.Module, own: dict[str, nn.Module]) -> None:
    """Undo :func:`_sync_batch_norms`, for ``prepare`` and ``convert``; keep the new statistics."""
    for path, norm in own.items():
        parent, _, name = path.rpartition(".")
        shared = getattr(model.get_submodule(parent), name)
        norm.load_state_dict(shared.state_dict())
        norm.train(shared.training)
        setattr(model.get_submodule(parent), name, norm)

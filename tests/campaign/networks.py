"""Unusual networks: prepared, converted, saved and loaded, each compared with the eager model."""

from __future__ import annotations

import copy
import linecache
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from campaign.outcome import FINDING, OK, REFUSED, Outcome, described, is_ours, normal, refusal
from campaign.programs import Program, program, without

#: Where float sums have another order, outputs agree to this, relative to the greatest.
TOLERANCE = 1e-4
#: CPU seconds for making a finding's program smaller.
SHRINK_SECONDS = 8.0


class Found(Exception):
    """A fault: its stage, its class, what was expected, and lines that reproduce it."""

    def __init__(self, stage: str, what: str, detail: str, show: str) -> None:
        super().__init__(f"{stage}: {what}")
        self.stage, self.what, self.detail, self.show = stage, what, detail, show


class Refused(Exception):
    """A clear refusal."""


def _run(text: str, namespace: dict[str, Any], name: str) -> None:
    """Execute source that inspect can find."""
    name = f"<{name}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), namespace)


def _fresh(arguments: Any) -> tuple[Any, ...]:
    """Copies that keep strides, so that a model that writes to its input leaves the original."""
    return tuple(
        copy.deepcopy(value.detach()) if isinstance(value, Tensor) else value for value in arguments
    )


def difference(expected: Any, got: Any) -> str | None:
    """How two outputs differ: structure, types, shapes, or bits (not those inside NaN)."""
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(got)
    if left_spec != right_spec:
        return f"structure: expected {left_spec}, got {right_spec}"[:300]
    for one, other in zip(left, right, strict=True):
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return f"expected {type(one).__name__}, got {type(other).__name__}"
        if not isinstance(one, Tensor):
            if one != other or type(one) is not type(other):
                return f"expected {one!r}, got {other!r}"
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return (
                f"expected {one.dtype} {tuple(one.shape)}, got {other.dtype} {tuple(other.shape)}"
            )
        same = (one == other) | ((one != one) & (other != other))
        if one.is_floating_point():
            same &= (one != 0) | (one.signbit() == other.signbit())
        if not bool(same.all()):
            gap = (one.double() - other.double()).abs()[~same]
            return f"{int((~same).sum())} of {one.numel()} values differ, by up to {float(gap.max()):g}"
    return None


def _has_nan(value: Any) -> bool:
    return any(
        isinstance(t, Tensor) and t.is_floating_point() and bool(t.isnan().any())
        for t in pytree.tree_leaves(value)
    )


def _greatest(value: Any) -> float:
    leaves = [
        t
        for t in pytree.tree_leaves(value)
        if isinstance(t, Tensor) and t.numel() and t.is_floating_point()
    ]
    return max((float(t.abs().max()) for t in leaves), default=0.0)


def _gap(expected: Any, got: Any) -> float:
    """Greatest difference relative to the greatest value; infinite where structures differ."""
    left, right = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    worst = 0.0
    scale = max(_greatest(expected), 1e-30)
    for one, other in zip(left, right, strict=False):
        if isinstance(one, Tensor) and one.is_floating_point():
            other = torch.as_tensor(other)
            if one.shape != other.shape:
                return float("inf")
            same = (one == other) | ((one != one) & (other != other))
            gap = (one.double() - other.double()).abs()[~same]
            worst = max(worst, float(gap.max()) / scale if gap.numel() else 0.0)
            if gap.numel() and bool(gap.isnan().any()):
                return float("inf")
    return worst


class Trial:
    """One run of one program through all stages."""

    def __init__(self, given: Program, folder: Path) -> None:
        self.program, self.folder = given, folder
        self.space: dict[str, Any] = {}
        self.stage = "define"
        self.refused: list[str] = []

    def raised(self, error: BaseException, show: str) -> None:
        """Sort an exception of a public call: a refusal or a fault."""
        if is_ours(error):
            raise Refused(f"{self.stage}: {refusal(error)}") from error
        what = f"raises {type(error).__name__}: {normal(error)}"
        raise Found(self.stage, what, described(error), show) from error

    def call(self, stage: str, text: str) -> None:
        self.stage = stage
        try:
            _run(text, self.space, f"campaign {self.program.seed} {stage}")
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self.raised(error, text)

    def eager(self, arguments: tuple[Any, ...]) -> Any:
        """What the model gives, or None where it cannot take such arguments."""
        try:
            with torch.no_grad():
                return (self.space["model"](*_fresh(arguments)),)
        except Exception:
            return None

    def compare(self, net: Any, name: str, make: str) -> None:
        given = [("the example", "example"), *self.program.others]
        for label, text in given:
            torch.manual_seed(self.program.seed % 1000 + 1)
            arguments = eval(text, self.space)
            expected = self.eager(arguments)
            if expected is None:
                continue
            show = (
                f"{make}torch.manual_seed({self.program.seed % 1000 + 1})\ngiven = {text}\n"
                f"with torch.no_grad():\n    print(model(*given), net(*given), sep='\\n')  # {label}\n"
            )
            self.stage = f"{name}, {label}"
            try:
                got = net(*_fresh(arguments))
            except BaseException as error:
                if not is_ours(error):
                    self.raised(error, show)
                if label == "the example" and "NaN" not in str(error):
                    what = f"refuses its own example: {refusal(error)}"
                    raise Found(self.stage, what, described(error), show) from error
                self.refused.append(f"call: {refusal(error)}")
                continue
            found = difference(expected[0], got)
            if found and not self.excused(arguments, expected[0], got):
                raise Found(self.stage, "differs from the eager model", found, show)

    def excused(self, arguments: tuple[Any, ...], expected: Any, got: Any) -> bool:
        """Whether the memory format differs from the example's, so that float sums may round differently."""
        strides = [
            [t.dim_order() if t.dim() and t.numel() else () for t in given if isinstance(t, Tensor)]
            for given in (arguments, self.space["example"])
        ]
        if strides[0] == strides[1]:
            return False
        return _gap(expected, got) <= TOLERANCE or self.sensitive(arguments, expected)

    def run(self) -> None:
        p = self.program
        try:
            _run(p.define(), self.space, f"campaign {p.seed} define")
        except Exception as error:
            raise Refused("the model itself fails") from error
        example = self.space["example"]
        if self.eager(example) is None:
            raise Refused("the model itself fails")
        trains = p.train and self.float_trains()
        self.call("prepare", p.prepare())
        if trains:
            self.call("train", p.training())
        try:
            _run(p.dressing(), self.space, f"campaign {p.seed} dress")
        except Exception as error:
            raise Refused("the prepared model cannot be dressed") from error
        if self.eager(example) is None:
            raise Refused("the prepared model fails")
        make = "net = fatnn.convert(model, example)\n"
        before = {name: tensor.clone() for name, tensor in self.space["model"].state_dict().items()}
        self.call("convert", make)
        net = self.space["net"]
        self.compare(net, "convert", make)
        after = self.space["model"].state_dict()
        changed = [name for name, tensor in before.items() if difference(tensor, after[name])]
        if changed:
            raise Found("convert", "changes the model", ", ".join(changed), make)
        self.call("report", make + "str(net.report), net.report.to_json(), repr(net)\n")
        self.call(
            "summary",
            make + "str(fatnn.summary(net, example)), str(fatnn.summary(model, example))\n",
        )
        self.verify(make)
        self.files(net, make)

    def float_trains(self) -> bool:
        """Whether the float model takes such a training step at all."""
        try:
            space = {**self.space, "model": copy.deepcopy(self.space["model"])}
            text = self.program.training().replace(
                "fatnn.param_groups(model, weight_decay=1e-4)", "model.parameters()"
            )
            torch.manual_seed(0)
            exec(text, space)
            values = [t for t in space["model"].state_dict().values() if t.is_floating_point()]
            return all(bool(t.isfinite().all()) for t in values)
        except Exception:
            return False

    def verify(self, make: str) -> None:
        self.stage = "verify"
        try:
            report = self.space["fatnn"].verify(
                self.space["model"], self.space["net"], self.space["example"]
            )
            text = str(report) + report.to_json()
            assert text
        except BaseException as error:
            if not is_ours(error):
                self.raised(error, make + "print(fatnn.verify(model, net, example))\n")
            self.refused.append(f"verify: {refusal(error)}")
            return
        if report.codes_different:
            show = make + "print(fatnn.verify(model, net, example))\n"
            raise Found("verify", "codes differ", str(report)[-400:], show)

    def files(self, net: Any, make: str) -> None:
        file = str(self.folder / "net")
        self.space["file"] = file
        save = make + "file = 'net.safetensors'\nfatnn.save(net, file)\n"
        self.stage = "save"
        try:
            self.space["fatnn"].save(net, file)
        except BaseException as error:
            if not is_ours(error):
                self.raised(error, save)
            self.refused.append(f"save: {refusal(error)}")
            return
        load = save + "net = fatnn.load(file)\n"
        try:
            self.stage = "load"
            loaded = self.space["fatnn"].load(file)
            self.compare(loaded, "load", load)
            self.stage = "copies"
            if self.program.seed % 4 == 0:
                self.compare(
                    copy.deepcopy(loaded),
                    "deepcopy",
                    load + "import copy\nnet = copy.deepcopy(net)\n",
                )
                self.compare(
                    pickle.loads(pickle.dumps(net)),
                    "pickle",
                    make + "import pickle\nnet = pickle.loads(pickle.dumps(net))\n",
                )
            self.stage = "load rust"
            rust = self.space["fatnn"].load(file, float_layers="rust")
        except (Found, Refused):
            raise
        except BaseException as error:
            what = f"{self.stage} of what was saved raises {refusal(error)}"
            raise Found(self.stage, what, described(error), load) from error
        self.stage = "load_numpy"
        try:
            array = self.space["fatnn"].load_numpy(file)
        except BaseException as error:
            if not is_ours(error):
                self.raised(error, save + "fatnn.load_numpy(file)\n")
            self.refused.append(f"load_numpy: {refusal(error)}")
            array = None
        self.compare_rust(rust, array, save)

    def sensitive(self, arguments: tuple[Any, ...], expected: Any) -> bool:
        """Whether noise as small as rounding changes codes, so that another order of sums may."""
        for seed in range(4):
            torch.manual_seed(seed)
            noisy = tuple(
                t * (1 + 2e-6 * torch.randn(t.shape))
                if isinstance(t, Tensor) and t.is_floating_point()
                else t
                for t in _fresh(arguments)
            )
            again = self.eager(noisy)
            if again is None or _gap(expected, again[0]) > TOLERANCE / 4:
                return True
        return False

    def compare_rust(self, rust: Any, array: Any, save: str) -> None:
        for label, text in [("the example", "example"), *self.program.others]:
            torch.manual_seed(self.program.seed % 1000 + 1)
            arguments = eval(text, self.space)
            expected = self.eager(arguments)
            if expected is None:
                continue
            head = f"{save}torch.manual_seed({self.program.seed % 1000 + 1})\ngiven = {text}  # {label}\n"
            show = f"{head}net = fatnn.load(file, float_layers='rust')\nprint(model(*given), net(*given), sep='\\n')\n"
            self.stage = f"rust, {label}"
            try:
                got = rust(*_fresh(arguments))
            except BaseException as error:
                if not is_ours(error):
                    self.raised(error, show)
                got = None
            if got is not None and label not in ("3e38", "infinities", "1e20", "nan", "denormals"):
                gap = _gap(expected[0], got)
                if gap > TOLERANCE and not self.sensitive(arguments, expected[0]):
                    raise Found(
                        self.stage,
                        "is far from the eager model",
                        f"{gap:g} of the greatest value",
                        show,
                    )
            if array is None or not all(isinstance(value, Tensor) for value in arguments):
                continue
            self.stage = f"load_numpy, {label}"
            both = f"{head}both = fatnn.load(file, float_layers='rust'), fatnn.load_numpy(file)\n"
            both += (
                "print(both[0](*given), both[1](*(t.detach().numpy() for t in given)), sep='\\n')\n"
            )
            try:
                other = array(*(value.detach().numpy() for value in arguments))
            except BaseException as error:
                if not is_ours(error):
                    self.raised(error, both)
                if got is not None and "another size" not in label:
                    what = f"is refused where load(float_layers='rust') runs: {refusal(error)}"
                    raise Found(self.stage, what, described(error), both) from error
                continue
            if got is None:
                continue
            leaves, arrays = pytree.tree_leaves(got), pytree.tree_leaves(other)
            for one, two in zip(leaves, arrays, strict=False):
                if isinstance(two, np.ndarray) and isinstance(one, Tensor):
                    found = difference(one, torch.from_numpy(np.array(two)))
                    if found:
                        raise Found(
                            self.stage, "differs from load(float_layers='rust')", found, both
                        )


def attempt(given: Program, folder: Path) -> tuple[Found | None, str, list[str]]:
    """Run a program: its fault, why it was refused, and refusals on the way."""
    torch.manual_seed(given.seed)
    trial = Trial(given, folder)
    try:
        trial.run()
    except Found as found:
        return found, "", trial.refused
    except Refused as refused:
        return None, str(refused), trial.refused
    return None, "", trial.refused


def _same_class(found: Found, other: Found | None) -> bool:
    return (
        other is not None
        and other.what == found.what
        and other.stage.split(",")[0] == found.stage.split(",")[0]
    )


def shrink(given: Program, found: Found, folder: Path) -> tuple[Program, Found]:
    """Leave out what the fault does not need."""
    until = time.process_time() + SHRINK_SECONDS
    smaller = True
    while smaller:
        smaller = False
        for candidate in without(given):
            if time.process_time() > until:
                return given, found
            other, _, _ = attempt(candidate, folder)
            if _same_class(found, other):
                assert other is not None
                given, found, smaller = candidate, other, True
                break
    return given, found


#: Steps that say nothing about a fault's class where others do.
PLAIN = {
    "conv",
    "linear",
    "batch norm",
    "ReLU",
    "keep",
    "container",
    "shared layer",
    "flatten",
    "relu",
}


def trial(seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = program(seed)
        found, refused, _ = attempt(given, folder)
        if found is None:
            if refused:
                return Outcome(OK if "model itself" in refused else REFUSED, refused)
            return Outcome(OK)
        given, found = shrink(given, found, folder)
    what = f"{found.stage}: {found.what}"
    if "differ" in found.what or "far from" in found.what:
        tags = {step.tag for step in given.steps}
        tags = (tags - PLAIN) or tags
        extra = ([f"dress {given.dress}"] if given.dress not in ("none", "plain") else []) + [
            text.split("(")[0] if "forward =" not in text else "patched forward"
            for text in (*given.before, *given.after)
        ]
        if len(tags) <= 3:
            what += f" [{'; '.join(sorted(tags) + extra)}]"
    text = given.define() + given.prepare()
    text += given.training() if given.train else ""
    text += given.dressing() + (found.show if found.stage not in ("prepare", "train") else "")
    return Outcome(FINDING, what, found.detail, text)


def reproduction(seed: int) -> str:
    given = program(seed)
    text = (
        given.define()
        + given.prepare()
        + (given.training() if given.train else "")
        + given.dressing()
    )
    return text + "net = fatnn.convert(model, example)\n"

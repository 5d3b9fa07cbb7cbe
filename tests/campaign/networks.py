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

from campaign.compare import difference, relative_difference
from campaign.outcome import (
    FINDING,
    OK,
    REFUSED,
    Outcome,
    describe_error,
    is_documented_error,
    message_class,
    refusal_class,
)
from campaign.programs import Program, program, smaller_programs

#: Tolerance, relative to the largest output, if float sums may be added in another order.
TOLERANCE = 1e-4


#: CPU seconds for shrinking the program of a finding.
SHRINK_SECONDS = 8.0


class Fault(Exception):
    """A fault: the stage, its class, the details, and lines that reproduce it."""

    def __init__(self, stage: str, what: str, detail: str, show: str) -> None:
        super().__init__(f"{stage}: {what}")
        self.stage, self.what, self.detail, self.show = stage, what, detail, show


class Refused(Exception):
    """The package refused the program with a documented error."""


def _run(text: str, namespace: dict[str, Any], name: str) -> None:
    """Execute source text under a name by which ``inspect`` finds it."""
    name = f"<{name}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), namespace)


def _copies(arguments: Any) -> tuple[Any, ...]:
    """Copy tensors with their strides, because a model may write to its inputs."""
    return tuple(
        copy.deepcopy(value.detach()) if isinstance(value, Tensor) else value for value in arguments
    )


class Trial:
    """Runs one program through all stages: prepare, convert, verify, save, load."""

    def __init__(self, given: Program, folder: Path) -> None:
        self.program, self.folder = given, folder
        self.namespace: dict[str, Any] = {}
        self.stage = "define"
        self.refused: list[str] = []

    def raised(self, error: BaseException, show: str) -> None:
        """Raise ``Refused`` for a documented exception of a public call, else ``Fault``."""
        if is_documented_error(error):
            raise Refused(f"{self.stage}: {refusal_class(error)}") from error
        what = f"raises {type(error).__name__}: {message_class(error)}"
        raise Fault(self.stage, what, describe_error(error), show) from error

    def call(self, stage: str, text: str) -> None:
        self.stage = stage
        try:
            _run(text, self.namespace, f"campaign {self.program.seed} {stage}")
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self.raised(error, text)

    def eager(self, arguments: tuple[Any, ...]) -> Any:
        """Return the model's output in a tuple, or None if the model fails on these arguments."""
        try:
            with torch.no_grad():
                return (self.namespace["model"](*_copies(arguments)),)
        except Exception:
            return None

    def compare(self, net: Any, name: str, make: str) -> None:
        given = [("the example", "example"), *self.program.others]
        for label, text in given:
            torch.manual_seed(self.program.seed % 1000 + 1)
            arguments = eval(text, self.namespace)
            expected = self.eager(arguments)
            if expected is None:
                continue
            show = (
                f"{make}torch.manual_seed({self.program.seed % 1000 + 1})\ngiven = {text}\n"
                f"with torch.no_grad():\n    print(model(*given), net(*given), sep='\\n')  # {label}\n"
            )
            self.stage = f"{name}, {label}"
            try:
                got = net(*_copies(arguments))
            except BaseException as error:
                if not is_documented_error(error):
                    self.raised(error, show)
                if label == "the example" and "NaN" not in str(error):
                    what = f"refuses its own example: {refusal_class(error)}"
                    raise Fault(self.stage, what, describe_error(error), show) from error
                self.refused.append(f"call: {refusal_class(error)}")
                continue
            found = difference(expected[0], got)
            if found and not self.memory_format_explains(arguments, expected[0], got):
                raise Fault(self.stage, "differs from the eager model", found, show)

    def memory_format_explains(self, arguments: tuple[Any, ...], expected: Any, got: Any) -> bool:
        """Whether the memory format differs from the example's, so sums may round differently."""
        strides = [
            [t.dim_order() if t.dim() and t.numel() else () for t in given if isinstance(t, Tensor)]
            for given in (arguments, self.namespace["example"])
        ]
        if strides[0] == strides[1]:
            return False
        return relative_difference(expected, got) <= TOLERANCE or self.rounding_changes_codes(
            arguments, expected
        )

    def run(self) -> None:
        p = self.program
        try:
            _run(p.define(), self.namespace, f"campaign {p.seed} define")
        except Exception as error:
            raise Refused("the model itself fails") from error
        example = self.namespace["example"]
        if self.eager(example) is None:
            raise Refused("the model itself fails")
        trains = p.train and self.float_trains()
        self.call("prepare", p.prepare())
        if trains:
            self.call("train", p.training())
        try:
            _run(p.set_norm_values(), self.namespace, f"campaign {p.seed} norm_values")
        except Exception as error:
            raise Refused("the BatchNorms cannot be set") from error
        if self.eager(example) is None:
            raise Refused("the prepared model fails")
        make = "net = fatnn.convert(model, example)\n"
        before = {
            name: tensor.clone() for name, tensor in self.namespace["model"].state_dict().items()
        }
        self.call("convert", make)
        net = self.namespace["net"]
        self.compare(net, "convert", make)
        after = self.namespace["model"].state_dict()
        changed = [name for name, tensor in before.items() if difference(tensor, after[name])]
        if changed:
            raise Fault("convert", "changes the model", ", ".join(changed), make)
        self.call("report", make + "str(net.report), net.report.to_json(), repr(net)\n")
        self.call(
            "summary",
            make + "str(fatnn.summary(net, example)), str(fatnn.summary(model, example))\n",
        )
        self.verify(make)
        self.files(net, make)

    def float_trains(self) -> bool:
        """Whether the float model survives the training steps."""
        try:
            namespace = {**self.namespace, "model": copy.deepcopy(self.namespace["model"])}
            text = self.program.training().replace(
                "fatnn.param_groups(model, weight_decay=1e-4)", "model.parameters()"
            )
            torch.manual_seed(0)
            exec(text, namespace)
            values = [t for t in namespace["model"].state_dict().values() if t.is_floating_point()]
            return all(bool(t.isfinite().all()) for t in values)
        except Exception:
            return False

    def verify(self, make: str) -> None:
        self.stage = "verify"
        try:
            report = self.namespace["fatnn"].verify(
                self.namespace["model"], self.namespace["net"], self.namespace["example"]
            )
            text = str(report) + report.to_json()
            assert text
        except BaseException as error:
            if not is_documented_error(error):
                self.raised(error, make + "print(fatnn.verify(model, net, example))\n")
            self.refused.append(f"verify: {refusal_class(error)}")
            return
        if report.codes_different:
            show = make + "print(fatnn.verify(model, net, example))\n"
            raise Fault("verify", "codes differ", str(report)[-400:], show)

    def files(self, net: Any, make: str) -> None:
        file = str(self.folder / "net")
        self.namespace["file"] = file
        save = make + "file = 'net.safetensors'\nfatnn.save(net, file)\n"
        self.stage = "save"
        try:
            self.namespace["fatnn"].save(net, file)
        except BaseException as error:
            if not is_documented_error(error):
                self.raised(error, save)
            self.refused.append(f"save: {refusal_class(error)}")
            return
        load = save + "net = fatnn.load(file)\n"
        try:
            self.stage = "load"
            loaded = self.namespace["fatnn"].load(file)
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
            rust = self.namespace["fatnn"].load(file, float_layers="rust")
        except (Fault, Refused):
            raise
        except BaseException as error:
            what = f"{self.stage} of what was saved raises {refusal_class(error)}"
            raise Fault(self.stage, what, describe_error(error), load) from error
        self.stage = "load_numpy"
        try:
            array = self.namespace["fatnn"].load_numpy(file)
        except BaseException as error:
            if not is_documented_error(error):
                self.raised(error, save + "fatnn.load_numpy(file)\n")
            self.refused.append(f"load_numpy: {refusal_class(error)}")
            array = None
        self.compare_rust(rust, array, save)

    def rounding_changes_codes(self, arguments: tuple[Any, ...], expected: Any) -> bool:
        """Whether noise as small as rounding errors changes the output, because it changes codes."""
        for seed in range(4):
            torch.manual_seed(seed)
            noisy = tuple(
                t * (1 + 2e-6 * torch.randn(t.shape))
                if isinstance(t, Tensor) and t.is_floating_point()
                else t
                for t in _copies(arguments)
            )
            again = self.eager(noisy)
            if again is None or relative_difference(expected, again[0]) > TOLERANCE / 4:
                return True
        return False

    def compare_rust(self, rust: Any, array: Any, save: str) -> None:
        for label, text in [("the example", "example"), *self.program.others]:
            torch.manual_seed(self.program.seed % 1000 + 1)
            arguments = eval(text, self.namespace)
            expected = self.eager(arguments)
            if expected is None:
                continue
            head = f"{save}torch.manual_seed({self.program.seed % 1000 + 1})\ngiven = {text}  # {label}\n"
            show = f"{head}net = fatnn.load(file, float_layers='rust')\nprint(model(*given), net(*given), sep='\\n')\n"
            self.stage = f"rust, {label}"
            try:
                got = rust(*_copies(arguments))
            except BaseException as error:
                if not is_documented_error(error):
                    self.raised(error, show)
                got = None
            if got is not None and label not in ("3e38", "infinities", "1e20", "nan", "denormals"):
                gap = relative_difference(expected[0], got)
                if gap > TOLERANCE and not self.rounding_changes_codes(arguments, expected[0]):
                    raise Fault(
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
                if not is_documented_error(error):
                    self.raised(error, both)
                if got is not None and "another size" not in label:
                    what = (
                        f"is refused where load(float_layers='rust') runs: {refusal_class(error)}"
                    )
                    raise Fault(self.stage, what, describe_error(error), both) from error
                continue
            if got is None:
                continue
            leaves, arrays = pytree.tree_leaves(got), pytree.tree_leaves(other)
            for one, two in zip(leaves, arrays, strict=False):
                if isinstance(two, np.ndarray) and isinstance(one, Tensor):
                    found = difference(one, torch.from_numpy(np.array(two)))
                    if found:
                        raise Fault(
                            self.stage, "differs from load(float_layers='rust')", found, both
                        )


def run_program(given: Program, folder: Path) -> tuple[Fault | None, str, list[str]]:
    """Run a program; return its fault, the reason of its refusal, and refusals of later stages."""
    torch.manual_seed(given.seed)
    trial = Trial(given, folder)
    try:
        trial.run()
    except Fault as found:
        return found, "", trial.refused
    except Refused as refused:
        return None, str(refused), trial.refused
    return None, "", trial.refused


def _same_class(found: Fault, other: Fault | None) -> bool:
    return (
        other is not None
        and other.what == found.what
        and other.stage.split(",")[0] == found.stage.split(",")[0]
    )


def shrink(given: Program, found: Fault, folder: Path) -> tuple[Program, Fault]:
    """Remove parts of the program as long as the same fault remains."""
    until = time.process_time() + SHRINK_SECONDS
    smaller = True
    while smaller:
        smaller = False
        for candidate in smaller_programs(given):
            if time.process_time() > until:
                return given, found
            other, _, _ = run_program(candidate, folder)
            if _same_class(found, other):
                assert other is not None
                given, found, smaller = candidate, other, True
                break
    return given, found


#: Tags of common steps, left out of a fault's class if the program has others.
COMMON_TAGS = {
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
        found, refused, _ = run_program(given, folder)
        if found is None:
            if refused:
                return Outcome(OK if "model itself" in refused else REFUSED, refused)
            return Outcome(OK)
        given, found = shrink(given, found, folder)
    what = f"{found.stage}: {found.what}"
    if "differ" in found.what or "far from" in found.what:
        tags = {step.tag for step in given.steps}
        tags = (tags - COMMON_TAGS) or tags
        extra = (
            [f"norm_values {given.norm_values}"]
            if given.norm_values not in ("none", "plain")
            else []
        ) + [
            text.split("(")[0] if "forward =" not in text else "patched forward"
            for text in (*given.before, *given.after)
        ]
        if len(tags) <= 3:
            what += f" [{'; '.join(sorted(tags) + extra)}]"
    text = given.define() + given.prepare()
    text += given.training() if given.train else ""
    text += given.set_norm_values() + (
        found.show if found.stage not in ("prepare", "train") else ""
    )
    return Outcome(FINDING, what, found.detail, text)


def reproduction(seed: int) -> str:
    given = program(seed)
    text = (
        given.define()
        + given.prepare()
        + (given.training() if given.train else "")
        + given.set_norm_values()
    )
    return text + "net = fatnn.convert(model, example)\n"

"""Random calls of public functions and operators with wrong arguments."""

from __future__ import annotations

import linecache
import random
import re
import traceback
from typing import Any

import torch

from campaign.ops import (
    ANY_ARGUMENTS,
    CONTEXTS,
    CORE,
    HEADER,
    MODEL,
    OPERATORS,
    POOLS,
    PUBLIC,
    SETUP,
)
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


def _geometry(r: random.Random) -> dict[str, Any]:
    g: dict[str, Any] = {
        "n": r.choice((1, 2, 3)),
        "groups": r.choice((1, 1, 2, 3)),
        "kernel": [r.choice((1, 2, 3)), r.choice((1, 1, 3))],
        "stride": [r.choice((1, 2)), r.choice((1, 2))],
        "padding": [r.choice((0, 1)), r.choice((0, 1, 2))],
        "dilation": [r.choice((1, 2)), 1],
        "h": r.choice((5, 6, 9)),
        "w": r.choice((3, 5, 8)),
    }
    g["c"] = g["groups"] * r.choice((1, 2, 5, 33, 64))
    g["o"] = g["groups"] * r.choice((1, 3, 8, 17))
    g["coding"] = r.choice(("full", "half", "uint2"))
    return g


class _Call:
    """One random call: its set-up, its source and what is known about its result."""

    def __init__(self, seed: int) -> None:
        r = random.Random(seed)
        self.rng = r
        self.changed: list[str] = []
        self.right = ""
        self.wrong_geometry = ""
        self.context = ""
        kind = r.random()
        if kind < 0.4:
            self._operator()
        elif kind < 0.65:
            self._core()
        else:
            self._public()

    def _draw_geometry(self) -> dict[str, Any]:
        while True:
            g = _geometry(self.rng)
            two_bit = g["coding"] == "uint2"
            g["code_type"] = "two-bit" if two_bit else "ternary"
            # Half-range ternary codes -1, 0, 1 stand for levels 0, 1, 2.
            g["low"], g["high"] = (0, 4) if two_bit else (-1, 2)
            g["shift"] = "+ 1" if g["coding"] == "half" else ""
            spans = [(g["kernel"][i] - 1) * g["dilation"][i] + 1 for i in range(2)]
            if g["coding"] == "half" and any(g["padding"]):
                g["padding"] = [0, 0]  # pads with level 0, which is code -1 and not 0
            if all((g["h"], g["w"])[i] + 2 * g["padding"][i] >= spans[i] for i in range(2)):
                break
        self.setup = SETUP.format(**g)
        return g

    def _draw_count(self) -> int:
        return self.rng.choice((0, 1, 1, 1, 1, 2, 3))

    def _operator(self) -> None:
        g = self._draw_geometry()
        self.name = self.rng.choice(list(OPERATORS))
        arguments, right = OPERATORS[self.name]
        texts = {name: text.format(**g) for name, _, text in arguments}
        changed = self.rng.sample(arguments, min(self._draw_count(), len(arguments)))
        for name, pool, _ in changed:
            form = self.rng.choice(POOLS[pool])
            old = texts[name] if texts[name] != "None" else "acc.float()"
            texts[name] = form.replace("{0}", old if pool == "t" else "{}")
            self.changed.append(name)
        self.right = right if not changed else ""
        if (
            self.name.startswith("conv")
            and {"kernel", "out_channels"} & set(self.changed)
            and "weight" not in self.changed
        ):
            self.wrong_geometry = (
                f"[{texts['out_channels']}, *({texts['kernel']})] != [{g['o']}, *{g['kernel']}]"
            )
        self.call = (
            f"torch.ops.fatnn_rs.{self.name}({', '.join(f'{k}={v}' for k, v in texts.items())})"
        )

    def _core(self) -> None:
        g = self._draw_geometry()
        self.name = self.rng.choice(list(CORE))
        texts = [text.format(**g) for _, text in CORE[self.name]]
        places = list(enumerate(pool for pool, _ in CORE[self.name]))
        for index, pool in self.rng.sample(places, min(self._draw_count(), len(places))):
            old = texts[index] if texts[index] != "None" else "acc.float().numpy()"
            texts[index] = self.rng.choice(POOLS[pool]).replace(
                "{0}", f"({old})" if pool in "at" else "{}"
            )
            self.changed.append(str(index))
        if self.name in (
            "fatnn.set_num_threads",
            "_core.set_num_threads",
            "_core.set_default_threads",
        ):
            texts = [text if text not in ("255", "1 << 16") else "4" for text in texts]
        self.call = f"{self.name}({', '.join(texts)})"

    def _public(self) -> None:
        r = self.rng
        ends = ("float", "int8", "ternary")
        self.setup = MODEL.replace("{last!r}", repr(r.choice(ends))).replace(
            "{first!r}", repr(r.choice(ends))
        )
        template, arguments = r.choice(PUBLIC)
        texts = [text.format() for text in arguments]
        if arguments:
            for index in r.sample(
                range(len(arguments)), min(r.choice((0, 1, 1, 1, 1, 2)), len(arguments))
            ):
                texts[index] = r.choice(ANY_ARGUMENTS)
                self.changed.append(texts[index])
        self.name = template.split("(")[0]
        self.call = template.format(*texts)
        if r.random() < 0.2:
            self.context = r.choice(CONTEXTS)
        self.public = True

    public = False

    def source(self) -> str:
        call = f"result = {self.call}"
        return (
            HEADER + self.setup + (f"{self.context}\n    {call}\n" if self.context else call + "\n")
        )


def _execute(text: str, space: dict[str, Any], name: str) -> None:
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), space)


#: Messages of torch about arguments that do not fit the schema of an op.
_SCHEMA = re.compile(
    r"Expected a value of type|expected at most|missing value for argument|"
    r"Unknown keyword argument|Expected value for argument|Unable to cast|is missing value|"
    r"Cannot convert|Could not infer dtype|expected \d+ dims|Overflow when unpacking long|"
    r"must be tuple of|cannot be converted|Unable to cast Python instance"
)


def _acceptable(call: _Call, error: BaseException) -> bool:
    """Whether a call may raise this: a documented error, or one about a wrong signature."""
    if is_documented_error(error):
        return True
    if isinstance(error, RuntimeError) and re.search("DefaultCPUAllocator|bad_alloc", str(error)):
        return True  # how torch reports missing memory
    if isinstance(error, TypeError) and "os.PathLike" in str(error):
        return True
    if (
        call.public
        and call.changed
        and call.name.startswith(("torch.", "fatnn.nn.Ternary", "net.to"))
    ):
        return isinstance(error, Exception)  # torch checks the arguments of its own functions
    inner = traceback.extract_tb(error.__traceback__)[-1].filename if error.__traceback__ else ""
    own_frame = inner.startswith("<campaign")
    if isinstance(error, TypeError) and (own_frame or not call.public):
        return True
    if call.call.startswith("torch.ops.") and "_ops.py" in inner:
        if isinstance(error, NotImplementedError):
            return True  # a tensor of a backend that no op has
        return isinstance(error, (RuntimeError, ValueError, OverflowError)) and bool(
            _SCHEMA.search(str(error))
        )
    if (
        call.call.startswith("_core.")
        and isinstance(error, (OverflowError, ValueError))
        and own_frame
    ):
        return True
    # Torch may reject the argument before it calls the package.
    return own_frame and not call.call.startswith(("_core.", "ops.", "array(", "fatnn."))


def _model_state(space: dict[str, Any]) -> list[str]:
    return [
        f"{name}:{type(module).__name__}:{module.training}"
        for name, module in space["model"].named_modules()
    ]


def trial(seed: int) -> Outcome:
    call = _Call(seed)
    space: dict[str, Any] = {}
    source = call.source()
    label = f"{call.name}({', '.join(call.changed)})"[:100]
    _execute(HEADER + call.setup, space, f"<campaign setup {seed}>")
    before = _model_state(space) if call.public else []
    arguments = f"result = {call.call}"
    text = f"{call.context}\n    {arguments}\n" if call.context else arguments + "\n"
    try:
        parts = call.call[call.call.index("(") :] if not call.public else ""
        if parts.startswith("(") and not call.public:
            # An argument that fails to evaluate tests nothing.
            _execute(
                f"dict{parts}" if "=" in parts else f"_ = [{parts[1:-1]}]",
                dict(space),
                "<campaign arguments>",
            )
    except BaseException:
        return Outcome(OK)
    try:
        _execute(text, space, f"<campaign {seed}>")
    except BaseException as error:
        if _acceptable(call, error):
            changed = (
                call.public and "prepare(model" not in call.call and before != _model_state(space)
            )
            if changed and "net.train" not in call.call:
                return Outcome(
                    FINDING,
                    f"{label}: a refused call changes the model",
                    describe_error(error),
                    source,
                )
            return Outcome(REFUSED, f"{call.name}: {refusal_class(error)}"[:110])
        if call.public and _argument_fails(call, space):
            return Outcome(OK)
        last = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{describe_error(error)}\nat {last.filename.split('/')[-1]}:{last.lineno}"
        what = f"{call.name}: raises {type(error).__name__}: {message_class(error)}"
        return Outcome(FINDING, what, detail, source)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(False)
    return _judged(call, space, label, source)


def _argument_fails(call: _Call, space: dict[str, Any]) -> bool:
    """Whether the error comes from evaluating an argument."""
    for text in call.changed:
        try:
            lines = f"{call.context}\n    _ = {text}" if call.context else f"_ = {text}"
            _execute(lines, dict(space), "<campaign argument>")
        except BaseException:
            return True
    return False


def _judged(call: _Call, space: dict[str, Any], label: str, source: str) -> Outcome:
    """Judge the result of a call that returned."""
    result = space["result"]
    if call.right:
        expected = space[call.right].to(result.dtype)
        if expected.shape != result.shape or not torch.equal(expected, result):
            return Outcome(
                FINDING,
                f"{call.name}: wrong result of a right call",
                f"{expected}\n{result}"[:600],
                source,
            )
    if not call.call.startswith("torch.ops."):
        return Outcome(OK)
    check = source + f"assert not ({call.wrong_geometry})\n" if call.wrong_geometry else source
    try:
        if call.wrong_geometry and eval(call.wrong_geometry, space):
            return Outcome(
                FINDING,
                f"{call.name}: accepts a kernel or out_channels that is not the weight's",
                "",
                check,
            )
    except Exception:
        pass
    tensors = [t for t in _argument_values(call, space) if isinstance(t, torch.Tensor)]
    if any(t.is_meta for t in tensors) and not result.is_meta:
        return Outcome(FINDING, f"{call.name}: a meta tensor among others gives memory", "", source)
    if result.is_meta and not all(t.is_meta for t in tensors):
        return Outcome(FINDING, f"{call.name}: a meta tensor among others is accepted", "", source)
    if result.is_meta:
        return Outcome(OK)
    again = eval(call.call, space)
    same = torch.equal(torch.nan_to_num(result.float()), torch.nan_to_num(again.float()))
    if "torch.rand" not in call.call and (result.shape != again.shape or not same):
        return Outcome(FINDING, f"{label}: two equal calls differ", "", source)
    return Outcome(OK)


def _argument_values(call: _Call, space: dict[str, Any]) -> list[Any]:
    inside = call.call[call.call.index("(") :]
    try:
        return list(eval(f"dict{inside}", space).values())
    except Exception:
        return []


def reproduction(seed: int) -> str:
    return _Call(seed).source()

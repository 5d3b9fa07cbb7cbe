"""Samples of the campaign (see tests/campaign), and that the campaign finds what it is for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials run in forked children")


def python(*arguments: str, timeout: float = 280.0) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=timeout
    )


def campaign(kind: str, seed: int, trials: int, timeout: float = 280.0) -> None:
    """Nothing may be found, and enough trials must give a right result instead of a refusal."""
    done = python(
        "-m",
        "campaign",
        "--kind",
        kind,
        "--seed",
        str(seed),
        "--trials",
        str(trials),
        "--jobs",
        "2",
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.search(r": (\d+) trials: (\d+) ok, (\d+) refused, 0 with a finding", done.stdout)
    assert counts, done.stdout
    ran, ok, _ = map(int, counts.groups())
    assert ran == trials
    assert ok >= trials * LEAST_RIGHT[kind], done.stdout


#: Share of trials that give a right result. Of forged files most have to be refused.
LEAST_RIGHT = {"networks": 0.4, "files": 0.02, "ops": 0.1}


@pytest.mark.parametrize(("kind", "trials"), [("networks", 24), ("files", 80), ("ops", 60)])
def test_a_sample_finds_nothing(kind: str, trials: int) -> None:
    campaign(kind, 1, trials)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1_000, 2_000, 3_000, 4_000])
@pytest.mark.parametrize(("kind", "trials"), [("networks", 100), ("files", 300), ("ops", 200)])
def test_a_longer_sample_finds_nothing(kind: str, trials: int, seed: int) -> None:
    campaign(kind, seed, trials, timeout=800)


FAULTS = """
import os, tempfile, time
from campaign.outcome import FINDING, OK, Outcome
from campaign.runner import Kind, Limits, run

def trial(seed):
    if seed == 1:
        os.abort()
    if seed == 2:
        while True:
            pass
    if seed == 3:
        kept = bytearray(b"x") * (300 << 20)
        return Outcome(OK, str(len(kept)))
    if seed == 4:
        raise BaseException("neither right nor refused")
    if seed == 5:
        bytearray(8 << 30)
    return Outcome(OK)

kind = Kind(trial, lambda seed: f"seed {seed}", Limits(cpu_seconds=1.0, peak_bytes=100 << 20))
with tempfile.TemporaryDirectory() as folder:
    outcomes = run(kind, iter(range(8)), None, 2, folder)
    for seed, outcome in sorted(outcomes, key=lambda pair: pair[0]):
        print(seed, outcome.verdict, outcome.what, "|", outcome.reproduction)
"""


def test_every_way_to_fail_is_a_finding_and_the_trials_go_on() -> None:
    done = python("-c", FAULTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 ok  | ",
        "1 finding the process died of SIGABRT | seed 1",
        "2 finding took more than 1 s | seed 2",
        "3 finding took more than 100 MiB of memory | seed 3",
        "4 finding the trial itself failed: BaseException: neither right nor refused | ",
        "5 finding the trial itself failed: MemoryError:  | ",
        "6 ok  | ",
        "7 ok  | ",
    ]


WRONG = """
import sys
import torch
from campaign import networks
from campaign.programs import program

given = next(p for p in map(program, range(1, 50)) if networks.trial(p.seed).verdict == "ok")
import fatnn_rs
from fatnn_rs.convert import TernaryNetwork
original = TernaryNetwork.forward if "forward" in vars(TernaryNetwork) else TernaryNetwork.__call__
name = "forward" if "forward" in vars(TernaryNetwork) else "__call__"
api = sys.modules["fatnn_rs.convert.api"]
for trial in ("check_outputs", "check_values", "check_batches", "check_sizes"):
    setattr(api, trial, lambda *arguments: None)  # else the conversion itself refuses
bump = lambda t: t + 1 if isinstance(t, torch.Tensor) and t.is_floating_point() else t
tree_map = torch.utils._pytree.tree_map
setattr(TernaryNetwork, name, lambda self, *a, **k: tree_map(bump, original(self, *a, **k)))
outcome = networks.trial(given.seed)
print(outcome.verdict, outcome.what)
exec(outcome.reproduction, {})
"""


def test_wrong_outputs_are_a_finding_that_can_be_pasted() -> None:
    done = python("-c", WRONG)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "finding" in done.stdout
    assert "differs from the eager model" in done.stdout


FORGED = """
import tempfile, os
from campaign import files
import fatnn_rs
with tempfile.TemporaryDirectory() as folder:
    files.make_bases(folder)
    for name in files.BASES:
        forged = files.Forged.read(os.path.join(folder, f"{name}.safetensors"))
        forged.graph["notes"] = ["another note"]
        tensor = next(key for key, info in forged.header.items() if info["dtype"] == "F32")
        forged.data[tensor] = forged.data[tensor][::-1]
        path = os.path.join(folder, "forged")
        forged.write(path)
        try:
            net = fatnn_rs.load(path)
            assert "another note" in str(net.report)
        except fatnn_rs.FormatError as error:
            assert "checksum" not in str(error), error
print("the checksum fits")
"""


def test_forged_files_get_past_the_checksum() -> None:
    done = python("-c", FORGED)
    assert "the checksum fits" in done.stdout, done.stderr[-2000:]

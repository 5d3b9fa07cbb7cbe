"""The machine of a benchmark or training run: processor, versions, environment, commit, date."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from fatnn_rs import _core

__all__ = ["AMX", "Machine", "usable_cpus"]

#: Processor flags that decide which kernels the compared runtimes can use.
FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi", "avx512_vpopcntdq",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "bf16", "asimd", "asimddp",
    "i8mm", "sve", "sve2",
)  # fmt: skip

#: Flag of int8 matrix tiles, which have several times the int8 throughput of vector instructions.
AMX = "amx_int8"

#: Environment variables that change what is measured. ONEDNN_MAX_CPU_ISA is read when a process
#: starts. It limits torch and OpenVINO (``AVX512_CORE_VNNI``: no AMX), but not onnxruntime.
VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "FATNN_ISA", "FATNN_KERNEL",
    "FATNN_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "MKL_NUM_THREADS",
)  # fmt: skip

PACKAGES = (
    "fatnn-rs", "numpy", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """One machine at one moment.

    Attributes
    ----------
    cpu
        Name of the processor.
    cpu_id
        Family, model and stepping, if known; names of virtual processors say little.
    cpus
        Number of processors that this process may use.
    flags
        Flags of the processor, limited to :data:`FLAGS`.
    clock_mhz
        Clock in MHz according to the system, or None. Virtual machines report the nominal clock.
    load
        Load average of the last minute before the recording, or None. Other programs distort
        measurements.
    kernels
        Kernels of fatnn-rs that this machine can run, best first.
    system, python, versions
        Names and versions; missing packages are left out.
    environment
        Those of :data:`VARIABLES` that are set.
    commit
        Commit of this package's source in a git checkout, with ``+`` if files differ from it; else
        None.
    date
        Time in UTC, ISO 8601.
    """

    cpu: str
    cpu_id: str
    cpus: int
    flags: tuple[str, ...]
    clock_mhz: float | None
    load: float | None
    kernels: tuple[str, ...]
    system: str
    python: str
    versions: dict[str, str]
    environment: dict[str, str]
    commit: str | None
    date: str

    @classmethod
    def current(cls) -> Machine:
        """Record this machine now."""
        cpuinfo = _cpuinfo()
        stated = set(re.split(r"\s+", f"{cpuinfo.get('flags', '')} {cpuinfo.get('Features', '')}"))
        identity = [cpuinfo.get(key, "") for key in ("cpu family", "model", "stepping")]
        clock = cpuinfo.get("cpu MHz", "")
        return cls(
            cpu=cpuinfo.get("model name") or platform.processor() or platform.machine(),
            cpu_id="-".join(part for part in identity if part),
            cpus=usable_cpus(),
            flags=tuple(flag for flag in FLAGS if flag in stated),
            clock_mhz=float(clock) if clock else None,
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            kernels=tuple(_core.cpu_info()["kernels"]),
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            versions={
                name: version for name in PACKAGES if (version := _version(name)) is not None
            },
            environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
            commit=_commit(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    @property
    def slug(self) -> str:
        """Directory name, such as ``intel-xeon-processor-6-167-1``."""
        plain = re.sub(r"\((r|tm|c)\)|@.*", " ", f"{self.cpu.lower()} ")
        return re.sub(r"[^a-z0-9]+", "-", f"{plain} {self.cpu_id}").strip("-")

    def results_file(self, folder: Path, what: str) -> Path:
        """Return a new path ``folder/<slug>/<date>-<what>.json`` and create its directory.

        If that file exists, the new name gets a number.
        """
        place = folder / self.slug
        place.mkdir(parents=True, exist_ok=True)
        stem, number = f"{self.date[:10]}-{what}", 1
        path = place / f"{stem}.json"
        while path.exists():
            number += 1
            path = place / f"{stem}-{number}.json"
        return path

    def lines(self) -> list[str]:
        """Describe the machine, for a report."""
        clock = "" if self.clock_mhz is None else f", {self.clock_mhz:.0f} MHz stated"
        load = "" if self.load is None else f", load {self.load:.1f}"
        environment = ", ".join(f"{name}={value}" for name, value in self.environment.items())
        return [
            f"{self.cpu} ({self.cpu_id or self.system}){clock}, {self.cpus} processors{load}: "
            + " ".join(self.flags),
            ", ".join(f"{name} {version}" for name, version in self.versions.items())
            + f", python {self.python}, commit {self.commit or 'unknown'}, {self.date}",
            f"environment: {environment or 'nothing set that changes speed'}",
        ]


def usable_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries in /proc/cpuinfo; empty if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit, or None if git does not track this file (as in a venv in a checkout)."""
    file = Path(__file__)
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file, "rev-parse", "--short=12", "HEAD")
    changed = _git(file, "status", "--porcelain", "--untracked-files=no", ":/")
    return f"{commit}+" if commit and changed else commit


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=file.parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

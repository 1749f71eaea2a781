"""What a reader must know of the machine to judge a figure; nothing that names it."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bundle.cpu import available_cpus, instruction_set

__all__ = ["machine_facts"]

_PACKAGES = ("torch", "transformers", "onnxruntime", "numpy")


def machine_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Processor, its instruction sets, how many of them, and the versions that matter; no host name, no path."""
    facts = {
        "cpu": _cpu_model(cpuinfo),
        "instruction_set": " ".join(instruction_set(cpuinfo)),
        "cpus": str(available_cpus()),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _cpu_model(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())

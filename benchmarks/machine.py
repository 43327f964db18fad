"""Facts of the machine and of the software that a number was measured with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["machine_facts", "machine_line"]

PACKAGES = (
    "tilewright",
    "torch",
    "numpy",
    "rasterio",
    "zarr",
    "dask",
    "odc-stac",
    "stackstac",
    "monai",
    "usearch",
    "faiss-cpu",
)


def machine_facts() -> dict[str, Any]:
    """Return processor, cores, memory, system, GPU, versions and the load at this moment, as plain data."""
    import psutil
    import rasterio

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "gpu": _gpu(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "gdal": rasterio.__gdal_version__,
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    }


def machine_line(facts: dict[str, Any]) -> str:
    """Return the facts as one line of Markdown."""
    versions = facts["versions"]
    told = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "gdal", "zarr", "rasterio") if name in versions
    )
    parts = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']:.0f} GiB",
        facts["gpu"] or "no GPU",
    ]
    return f"{', '.join(parts)}; Python {versions['python']}, {told}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return ", ".join(found.stdout.split("\n")).strip(", ") or None if found.returncode == 0 else None


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

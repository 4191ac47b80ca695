"""The NVIDIA GPU of this machine, as nvidia-smi tells of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Gpu:
    """The first GPU that CUDA may use; `target` is its compute capability, such as sm89."""

    name: str
    driver: str
    target: str


@dataclass(frozen=True)
class Clocks:
    """What a latency depends on: clocks in MHz, temperature in degrees Celsius, power in W. A
    value that the GPU does not tell is None."""

    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None


@cache
def gpu() -> Gpu | None:
    """The GPU, or None; `trouble` says why."""
    fields = _query("name,driver_version,compute_cap")
    if isinstance(fields, str):
        return None
    name, driver, capability = fields
    return Gpu(name, driver, f"sm{capability.replace('.', '')}")


def trouble() -> str | None:
    """Why `gpu` finds none, mostly in nvidia-smi's words; None where it does or that is not
    installed."""
    fields = _query("name,driver_version,compute_cap")
    return fields if isinstance(fields, str) and fields else None


def clocks() -> Clocks | None:
    """The clocks of this moment; None without a GPU."""
    fields = _query("clocks.sm,clocks.mem,temperature.gpu,power.draw")
    return None if isinstance(fields, str) else Clocks(*map(_number, fields))


def _query(fields: str) -> list[str] | str:
    """The values of these fields, or what nvidia-smi says instead: '' where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it" if shutil.which("nvidia-smi") else ""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*command, "-i", visible], capture_output=True, text=True, timeout=20, check=False
        )
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"nvidia-smi: {err}"
    lines = done.stdout.strip().splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if done.returncode or len(values) != len(fields.split(",")):
        return " ".join((done.stdout + done.stderr).split())[:200] or "nvidia-smi told nothing"
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A]
        return None

"""The device and the precision of the forward pass."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from embedx.errors import ConfigError
from embedx.values import Precision, PrecisionName


def resolve_device(name: str, *, is_elsewhere: bool = False) -> torch.device:
    """Returns the device of this name; `auto` is CUDA if there is a CUDA device.

    Args:
        name: auto, cpu, cuda or cuda:N.
        is_elsewhere: Whether it is a device of other machines, of which this one may have none.

    Raises:
        ConfigError: If there is no such device.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"--device {name!r} is none of auto, cpu, cuda, cuda:N")
    if name != "cpu" and int(match[1] or 0) >= available and not is_elsewhere:
        raise ConfigError(f"--device {name}: torch sees {available} CUDA devices; give --device cpu or auto")
    return torch.device(f"{name}:0" if name == "cuda" else name)  # set_device takes none without a number


def is_here(device: torch.device) -> bool:
    """Tells whether this machine has a device of this kind."""
    return device.type == "cpu" or torch.cuda.is_available()


def has_bf16(device: torch.device) -> bool:
    """Tells whether a device multiplies bfloat16 numbers natively; others are slower with them than in fp32.

    One of another machine is expected to.
    """
    if not is_here(device):
        return True
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("aarch64", "arm64"):
        has_mkldnn = torch.backends.mkldnn.is_available()
        return bool(has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def hardware_of(device: torch.device) -> dict[str, str | int]:
    """Describes what computes, beside the recipe, for the index tables: another one may give other last bits."""
    if not is_here(device):
        return {"device": f"{device.type} of another machine"}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {
            "device": card.name,
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
            "driver": _first_match(r"Module[^\n]*?(\d+(?:\.\d+)+)", "/proc/driver/nvidia/version") or "unknown",
            "cuda": torch.version.cuda or "unknown",
            "cudnn": torch.backends.cudnn.version() or "unknown",
        }
    return {
        "device": _first_match(r"model name\s*: *([^\n]+)", "/proc/cpuinfo") or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _first_match(pattern: str, path: str) -> str | None:
    """Returns the first group of the first match in a file of Linux's; None where there is none."""
    try:
        found = re.search(pattern, Path(path).read_text(errors="replace"))
    except OSError:
        return None
    return found[1].strip() if found else None


def resolve_precision(precision: PrecisionName | None, device: torch.device) -> Precision:
    """Returns the given precision, or the device's default if none is given, or `auto`.

    Raises:
        ConfigError: If the device does not have this precision.
    """
    if precision == "tf32" and device.type == "cpu":
        raise ConfigError("--precision tf32 is for CUDA devices; on the CPU give fp32 or bf16")
    if precision is None or precision == "auto":
        return "tf32" if device.type == "cuda" else "fp32"
    return precision

"""The devices of the members on this machine."""

from __future__ import annotations

import torch

from embedx.config import ExtractConfig
from embedx.distribute.ranks import Rank
from embedx.errors import ConfigError
from embedx.models.device import resolve_device


def resolve_devices(config: ExtractConfig, rank: Rank | None = None) -> tuple[str, ...]:
    """Returns the devices to compute on, by `--devices`, or the one of `--device`.

    Args:
        config: The settings of the run.
        rank: The place of this process among those of a launcher; several on one machine get a GPU each.

    Raises:
        ConfigError: If one of them is not there, they are of two kinds, or both settings are given.
    """
    if config.devices == "auto":
        several = _visible() if config.device == "auto" else ()
        if rank is not None and rank.local_count > 1 and several:
            return (several[rank.local % len(several)],)
        if len(several) > 1:
            return several
        return (config.device if rank is None else str(resolve_device(config.device)),)
    if config.device != "auto":
        raise ConfigError(f"--device {config.device} and --devices {config.devices}: give one of them")
    if config.devices == "all":
        if not (names := _visible()):
            raise ConfigError("--devices all: torch sees no CUDA device; leave it out, or give --devices cpu")
        return names
    names = tuple(f"cuda:{name}" if name.isdecimal() else name for name in config.devices.split(","))
    faults: list[str] = []
    found = []
    for name in names:
        try:
            found.append(resolve_device(name))
        except ConfigError as error:
            faults += [fault.replace("--device ", "--devices ", 1) for fault in error.faults]
    if len({device.type for device in found}) > 1:
        faults.append(f"--devices {config.devices}: a store is computed on one kind of device; name GPUs, or the CPU")
    ConfigError.check(faults)
    return tuple(map(str, found))


def _visible() -> tuple[str, ...]:
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))

"""The settings of torch that a run makes for the whole process, and that a program gets back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Restores, at the end, torch's number of threads, its CUDA device and its use of tf32."""
    threads = torch.get_num_threads()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    libraries: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    tf32 = [(library, library.allow_tf32) for library in libraries]
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if device is not None:
            torch.cuda.set_device(device)
        for library, allowed in tf32:
            if library.allow_tf32 != allowed:
                library.allow_tf32 = allowed

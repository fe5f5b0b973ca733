"""The machine: its cores, the files a process may open, and how memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource


def allow_files(count: int) -> None:
    """Lets this process and its children open as many files as the system allows them.

    Args:
        count: How many they need.

    Raises:
        OSError: If they may not open so many: short of them, batches on their way from process to process get lost.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < count:
        advice = f"this run may need {count}, and the limit is {most}; raise it, or give fewer --workers"
        raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}: {advice}")
    with contextlib.suppress(OSError, ValueError):  # macOS states a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cores() -> int:
    """Cores that this process may use, by its affinity and by the limits of its container; rounded up."""
    from loky import cpu_count  # type: ignore[import-untyped]

    return int(cpu_count())


def keep_large_blocks() -> None:
    """Has glibc keep large blocks when they are freed; elsewhere nothing is done.

    Given back, as it does by itself, they come again page by page: a third of the time of a ResNet-50 on two cores
    was seen to go into that.
    """
    _set_malloc(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def return_large_blocks() -> None:
    """Has glibc give every large block back when it is freed; elsewhere nothing is done.

    Left to itself it raises its threshold with each block, serves them from the heap, and the heap grows by
    fragments: about a shard per unit, as was seen in the writer with shards of 1 MiB.
    """
    _set_malloc(mmap_threshold=1 << 18, trim_threshold=1 << 18)


def _set_malloc(*, mmap_threshold: int, trim_threshold: int) -> None:
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, mmap_threshold)
        mallopt(m_trim_threshold, trim_threshold)

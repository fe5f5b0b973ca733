"""The machine's limits: its cores, the files that a process may open, and how glibc keeps memory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from embedx.values import size_text


def allow_files(count: int) -> None:
    """Raises the limit of open files, for this process and its children, to the most that the system allows.

    Args:
        count: The number of files that a process needs.

    Raises:
        OSError: If the system allows fewer than `count`, as batches between processes would then get lost.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < count:
        advice = f"this run may need {count}, and the limit is {most}; raise it, or give fewer --workers"
        raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}: {advice}")
    with contextlib.suppress(OSError, ValueError):  # macOS states a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check_threads(count: int) -> None:
    """Checks that the system allows so many further threads and processes, by starting as many threads for a moment.

    Raises:
        OSError: If it does not, as processes that need more would end one by one, or hang.
    """
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        space, _ = resource.getrlimit(resource.RLIMIT_AS)
        which = "the user's or the container's limit"
        if space != resource.RLIM_INFINITY:
            which += f", or that of address space (now {size_text(space)}, set by ulimit)"
        advice = f"this run may need {count} more; raise {which}, or give fewer --workers"
        raise OSError(errno.EAGAIN, f"the system allows no more threads and processes: {advice}") from error
    finally:
        end.set()


def free_shared_memory() -> int | None:
    """Returns the bytes that are free in the file system of shared memory; None where there is no such thing."""
    try:
        there = os.statvfs("/dev/shm")
    except OSError:
        return None
    return there.f_bavail * there.f_frsize


def physical_memory() -> int:
    """Returns the bytes of the machine's memory, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Returns the bytes of memory that can still be used: the machine's, or what the container's limit leaves."""
    rooms = [physical_memory()]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        rooms.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024)
    for folder in _memory_groups():
        with contextlib.suppress(OSError, ValueError, StopIteration):
            rooms.append(_room_of_group(folder))
    return max(0, min(rooms))


def _memory_groups() -> Iterator[Path]:
    """Yields the control group of this process, and those around it, as the first or second version has them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                root = Path("/sys/fs/cgroup", controllers)
                here = root / path.lstrip("/")
                yield from (folder for folder in (here, *here.parents) if folder.is_relative_to(root))


def _room_of_group(folder: Path) -> int:
    """Returns the bytes that a group may still take; files that it has only read count as free.

    Raises:
        OSError: If the files are not there, as those of the other version.
        ValueError: If it has no limit.
    """
    names = [("memory.max", "memory.current", "inactive_file")]
    names += [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
    most, used, reclaimable = next(each for each in names if (folder / each[0]).exists())
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / most).read_text()) - int((folder / used).read_text()) + int(statistics.get(reclaimable, 0))


def cores() -> int:
    """Returns the number of cores that this process may use, by affinity and container limits, rounded up."""
    from loky import cpu_count

    return int(cpu_count())


def keep_large_blocks() -> None:
    """Has glibc keep large blocks when they are freed; elsewhere nothing is done.

    Given back, as it does by itself, they come again page by page: a third of the time of a ResNet-50 on two cores
    was seen to go into that.
    """
    _set_malloc(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def return_freed_blocks() -> None:
    """Gives freed memory back to the system, and undoes `keep_large_blocks`; does nothing without glibc."""
    _set_malloc(mmap_threshold=1 << 25, trim_threshold=1 << 26)  # glibc's own, once it has seen large blocks
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Makes glibc return every large block to the system when it is freed; does nothing without glibc.

    By default glibc raises its threshold with each block and serves them from the heap, which fragments: in the
    writer, with shards of 1 MiB, it grew by about a shard per unit.
    """
    _set_malloc(mmap_threshold=1 << 18, trim_threshold=1 << 18)


def _set_malloc(*, mmap_threshold: int, trim_threshold: int) -> None:
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, mmap_threshold)
        mallopt(m_trim_threshold, trim_threshold)

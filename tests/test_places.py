"""Places with gaps: no locks, no sync of folders, little shared memory, a long TMPDIR, an overlay, few threads."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedx import sample
from tests.disks import mounted
from tests.runs import EMBEDX, OFFLINE, digests, run
from tests.store.builders import build_store

SAMPLE = ("extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--image-size", "64")
FEW = (*SAMPLE, "--data", f"val={sample.IMAGES / 'val' / 'star'}", "--workers", "1")

REFUSING = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int descriptor, int operation) {
    if (getenv("NO_FLOCK")) { errno = atoi(getenv("NO_FLOCK")); return -1; }
    return syscall(SYS_flock, descriptor, operation);
}

int fcntl64(int descriptor, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    if (getenv("NO_LOCKS") && command == F_SETLK) { errno = atoi(getenv("NO_LOCKS")); return -1; }
    return syscall(SYS_fcntl, descriptor, command, argument);
}
int fcntl(int descriptor, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    return fcntl64(descriptor, command, argument);
}

int fsync(int descriptor) {
    struct stat there;
    if (!fstat(descriptor, &there) && S_ISDIR(there.st_mode)) { errno = EINVAL; return -1; }
    return syscall(SYS_fsync, descriptor);
}

int syncfs(int descriptor) { errno = ENOSYS; return -1; }
"""


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A library that answers as file systems do that lack something, to be preloaded."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "refusing.c").write_text(REFUSING)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "refusing.so", folder / "refusing.c"], check=True)
    return {"LD_PRELOAD": str(folder / "refusing.so")}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("usual") / "store"
    assert run(*FEW, "--out", out).returncode == 0
    return digests(out)


@pytest.mark.soak
def test_without_flock_and_sync_of_folders_and_with_a_long_temporary_path_it_works(
    tmp_path: Path, refusing: dict[str, str], usual: dict[str, str]
) -> None:
    temporary = tmp_path / ("x" * 120)
    temporary.mkdir()
    env = refusing | {"NO_FLOCK": str(errno.ENOSYS), "TMPDIR": str(temporary)}
    done = run(*FEW, "--out", tmp_path / "store", env=env)
    assert done.returncode == 0 and digests(tmp_path / "store") == usual, done.stderr
    done = run(*FEW, "--out", tmp_path / "none", env=env | {"NO_LOCKS": str(errno.ENOLCK)})
    assert done.returncode == 2 and "the file system there has no locks" in done.stderr
    assert done.stderr.count("error:") == 1 and not (tmp_path / "none").exists()


@pytest.mark.soak
@pytest.mark.parametrize(("size", "fits"), [("3m", True), ("400k", False)])
def test_little_shared_memory_is_enough_or_refused_at_once(tmp_path: Path, size: str, fits: bool) -> None:
    command = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    arguments = [*EMBEDX, *FEW, "--workers", "8", "--out", str(tmp_path / "store")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | OFFLINE,
        timeout=110,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    if fits:
        assert done.returncode == 0 and "10 rows, 0 rejected" in done.stderr, done.stderr
    else:
        assert done.returncode == 1 and "error: shared memory (/dev/shm) has 400.0 KiB free" in done.stderr, done.stderr


def test_a_store_of_an_overlay_s_lower_layer_is_refused_before_the_work(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs") as disk:
        for name in ("upper", "work", "lower"):
            (disk / name).mkdir()
        build_store(disk / "lower" / "store", inputs=4)
        layers = ",".join(f"{name}dir={disk / name}" for name in ("lower", "upper", "work"))
        with mounted(tmp_path / "merged", "-t", "overlay", "-o", layers, "overlay") as merged:
            done = run(*FEW, "--out", merged / "store", "--overwrite")
            assert done.returncode == 2 and "it is of a lower layer of an overlay" in done.stderr, done.stderr
            assert {path.name for path in merged.iterdir()} == {"store"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody reaches; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.soak
def test_few_threads_are_told_before_the_work(open_folder: Path) -> None:
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become another user here")
    files = "+dac_override,+dac_read_search"  # another user's limit counts, and this one's files are still read
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={files}"]
    done = subprocess.run(
        [*user, f"--ambient-caps={files}", *EMBEDX, *FEW, "--out", str(open_folder / "store")],
        capture_output=True,
        text=True,
        env=os.environ | OFFLINE | {"HOME": str(open_folder)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (18, 18)),
        timeout=110,
        check=False,
    )
    assert done.returncode == 1 and "error: the system allows no more threads and processes" in done.stderr, done.stderr
    assert done.stderr.count("error:") == 1

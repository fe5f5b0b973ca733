"""The process of faiss: what it gives back, and that nothing of it stays."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embedx.errors import ConfigError, EmbedxError
from embedx.vectors.indexing.faiss_process import FaissProcess

VECTORS = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
NUMBERS = np.arange(500) * 3 + 1


def libraries(pid: int | str) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "RR8,IVF8,Flat", "IDMap,Flat", "IVF8,Flat,RFlat", "HNSW32"])
def test_the_nearest_are_those_of_numpy_under_the_numbers_that_were_given(factory: str, tmp_path: Path) -> None:
    exact = np.argsort(-(VECTORS[:20] @ VECTORS.T), axis=1, kind="stable")[:, :5]
    with FaissProcess(threads=1) as faiss:
        if faiss.create(8, factory):
            faiss.train([VECTORS[:300], VECTORS[300:]], 500)
        faiss.add(VECTORS[:333], NUMBERS[:333])
        faiss.add(VECTORS[333:], NUMBERS[333:])
        depth = faiss.depth()
        searched = faiss.search(VECTORS[:20], 5, None if depth is None else (depth.name, depth.most))
        assert (searched[1] == NUMBERS[exact]).mean() >= (0.9 if "HNSW" in factory else 1)
        written = faiss.write(tmp_path / "index")
        data = (tmp_path / "index").read_bytes()
        assert written == (len(data), hashlib.sha256(data).hexdigest())
    with FaissProcess(threads=1) as faiss:
        for sha256, is_right in (("0" * 64, False), (written.sha256, True)):
            with (tmp_path / "index").open("rb") as file:
                assert faiss.read(file, sha256) is is_right
        again = faiss.search(VECTORS[:20], 5, None if depth is None else (depth.name, depth.most))
    assert np.array_equal(searched[0], again[0]) and np.array_equal(searched[1], again[1])


def test_vectors_without_numbers_are_counted_from_0() -> None:
    with FaissProcess(threads=1) as faiss:
        assert not faiss.create(8, "Flat", by_number=False)
        faiss.add(VECTORS)
        similarities, numbers = faiss.search(VECTORS[7:8], 600)
    assert sorted(numbers[0, :500].tolist()) == list(range(500)) and (numbers[0, 500:] == -1).all()
    assert np.allclose(similarities[0, :500], (VECTORS @ VECTORS[7])[numbers[0, :500]], atol=1e-5)


def test_torch_and_faiss_are_never_in_one_process() -> None:
    with FaissProcess() as faiss:
        faiss.create(8, "IVF2,Flat")
        faiss.train([VECTORS], 500)
        assert "faiss" in libraries(faiss.pid) and "libtorch" not in libraries(faiss.pid)
        assert "swigfaiss" not in libraries("self")
    assert "faiss" not in sys.modules


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("nonsense", "--factory nonsense: faiss can't make such an index of vectors of 8 numbers (could not parse"),
        ("PQ5", "should be a multiple of"),
        ("IVF501,Flat", "can't train such an index with 500 vectors (Number of training points"),
        ("", "could not parse"),
    ],
)
def test_a_description_that_faiss_does_not_take_is_told_in_its_words(factory: str, told: str) -> None:
    with FaissProcess(threads=1) as faiss, pytest.raises(ConfigError) as error:
        faiss.create(8, factory)
        faiss.train([VECTORS], 500)
    assert told in str(error.value) and ".cpp" not in str(error.value)


def test_a_crash_of_faiss_and_a_kill_are_told_by_the_signal_s_name() -> None:
    with FaissProcess(threads=1) as faiss:
        faiss.create(8, "HNSW0")
        with pytest.raises(EmbedxError, match=r"killed by SIG.*try another --factory"):
            faiss.add(VECTORS, NUMBERS)
    with FaissProcess(threads=1) as faiss:
        os.kill(faiss.pid, signal.SIGKILL)
        with pytest.raises(EmbedxError, match="killed by SIGKILL, by hand or by the system for want of memory"):
            faiss.create(8, "Flat")
    with FaissProcess(threads=1) as faiss, pytest.raises(EmbedxError, match="faiss failed"):
        faiss.create("eight", "Flat")


def test_a_faiss_that_is_missing_or_broken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faiss.py").write_text("raise ImportError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"faiss is missing \(no such library\): pip install 'embedx\[faiss\]'"):
        FaissProcess().__enter__()
    (tmp_path / "faiss.py").write_text("import sys; print('licence', file=sys.stderr); sys.exit(7)")
    with pytest.raises(EmbedxError, match=r"ended with exit code 7 \(licence\)"):
        FaissProcess().__enter__()


def test_a_file_that_can_t_be_written_is_not_left_by_half(tmp_path: Path) -> None:
    with FaissProcess(threads=1) as faiss:
        faiss.create(8, "Flat")
        for start in range(0, 10**6, 10**5):
            faiss.add(np.zeros((10**5, 8), np.float32), np.arange(start, start + 10**5))
        resource.prlimit(faiss.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
        with pytest.raises(OSError, match="File too large"):
            faiss.write(tmp_path / "index")
        assert not list(tmp_path.iterdir())
        with pytest.raises(FileNotFoundError):
            faiss.write(tmp_path / "nowhere" / "index")
        assert faiss.search(VECTORS[:1], 1)[1].shape == (1, 1), "the process goes on"


PARENT = """
import sys, time
import numpy
from embedx.vectors.indexing.faiss_process import FaissProcess
with FaissProcess(threads=1) as faiss:
    print(faiss.pid, flush=True)
    faiss.create(64, "IVF4000,Flat")
    vectors = numpy.random.default_rng(0).standard_normal((60_000, 64)).astype("f")
    faiss.train([vectors], len(vectors))  # for half a minute and more
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_when_the_parent_is_ended(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.send_signal(how)
    parent.wait(20)
    parent.stdout.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < end, "the process of faiss goes on"
        time.sleep(0.05)

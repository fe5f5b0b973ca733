"""Two hundred thousand tiny files: no process of a run takes more memory or files as it goes on."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from pathlib import Path

import psutil
import pytest

from embedx.store.reading.verify import verify
from tests.run.test_update import SIDE, draw
from tests.runs import memory_of, start

COUNT, PER_FOLDER = 200_000, 2_000
MIB = 1 << 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_memory_and_files_stay_flat_over_many_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(COUNT):
        draw(tmp_path / "images" / f"{number // PER_FOLDER:03d}" / f"{number:06d}.ppm", number)
    flags = ["--backbone=torch.nn:Flatten", f"--image-size={SIDE}", "--mean=0.5", "--std=0.5", "--batch-size=64", "-j2"]
    flags += ["--shard-size=8MiB", "--json", f"--data={tmp_path / 'images'}", f"--out={tmp_path / 'store'}"]
    samples: dict[int, list[tuple[int, int]]] = {}
    names: dict[int, str] = {}
    with start("extract", *flags) as run:
        process = psutil.Process(run.pid)
        while run.poll() is None:
            time.sleep(1)
            with contextlib.suppress(psutil.Error, OSError):
                for each in [process, *process.children(recursive=True)]:
                    names[each.pid] = each.name()
                    samples.setdefault(each.pid, []).append((memory_of([each]) // MIB, each.num_fds()))
        stdout, stderr = run.communicate()
    assert run.returncode == 0, stderr
    assert json.loads(stdout)["rows"] == COUNT
    longest = max(map(len, samples.values()))
    lasting = {pid: found for pid, found in samples.items() if len(found) > longest / 2}
    assert len(lasting) >= 4  # this process, its writer and two workers
    for pid, found in lasting.items():
        third = len(found) // 3
        middle, late = found[third : 2 * third], found[2 * third :]
        (memory, files), (later_memory, later_files) = (
            [statistics.median(column) for column in zip(*part, strict=True)] for part in (middle, late)
        )
        with capsys.disabled():
            print(f"\n{names[pid]}: {memory} then {later_memory} MiB, {files} then {later_files} files, {len(found)} s")
        assert later_memory <= 1.1 * memory + 8 and later_files <= files + 8
    assert list(verify(tmp_path / "store")) == []

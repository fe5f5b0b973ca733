from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from embedx.callbacks.rejected import RejectedInputs
from embedx.data.decoding.images import ImageDecoder, decode, preprocess
from embedx.data.loading.batches import Batches
from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.unit_batches import UnitBatches
from embedx.data.plan import SplitPlan, build_plan
from embedx.data.reading.files import FileReader
from embedx.engine.connectors import DataConnector
from embedx.engine.loop import run_test
from embedx.errors import InputError, LoaderError
from embedx.recipe import Preprocessing
from tests.folders import folder_source

STEPS = Preprocessing(resize=36, crop=32, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
DECODER = ImageDecoder(STEPS)
NO_MEMORY = "too large for the memory there is"
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """13 inputs of three classes and one without; one is damaged, one a broken link."""
    root = tmp_path_factory.mktemp("images")
    with Image.open(photos / "coffee.png") as opened:
        photo = opened.convert("RGB")
    for number in range(10):
        place = root / CLASSES[number % 3]
        place.mkdir(exist_ok=True)
        photo.crop((number * 20, 0, number * 20 + 200, 150)).save(place / f"{number}.{'jpg' if number % 2 else 'webp'}")
    (root / "dog/bad.jpg").write_bytes((root / "dog/1.jpg").read_bytes()[:500])
    (root / "cat/gone.jpg").symlink_to("nowhere.jpg")
    photo.resize((64, 48)).save(root / "loose.png")
    return root


def plan_of(folder: Path) -> SplitPlan:
    return build_plan({"all": folder_source(folder)}, "class").splits["all"]


def loader(plan: SplitPlan, *, workers: int = 0, batch_size: int = 4, rows_per_unit: int = 8) -> SplitLoader:
    return SplitLoader(plan, plan.unit_rows(rows_per_unit), DECODER, batch_size=batch_size, workers=workers)


def workers_alive() -> list[psutil.Process]:
    """The loaders' workers: they are the children of the fork server, which itself is a child of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.ppid() != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def plain(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch in values that compare by ==."""
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "metadata"
    } | {"metadata": {name: values.to_pylist() for name, values in batch["metadata"].items()}}


def test_workers_give_way_to_the_process_that_computes(folder: Path) -> None:
    plan = plan_of(folder)
    loaded = SplitLoader(plan, plan.unit_rows(8), DECODER, batch_size=4, workers=2, niceness=7)
    loaded.start()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert wait_for(lambda: [worker.nice() for worker in workers_alive()] == [min(19, own + 7)] * 2)
    loaded.close()


def test_a_batch_is_what_the_module_says_it_is(folder: Path) -> None:
    plan = plan_of(folder)
    batches = list(loader(plan))
    assert len(batches) == len(loader(plan)) == 4
    for batch in batches:
        count = len(batch["index"])
        assert batch["images"].shape == (4, 3, 32, 32)
        assert batch["images"].dtype == torch.uint8
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        assert batch["index"].dtype == torch.int64
        if "targets" in batch:
            assert (batch["targets"].dtype, batch["targets"].shape) == (torch.int64, (count,))
        for name in ("keys", "paths", "groups", "reasons", "bytes", "sha256"):
            assert isinstance(batch[name], list) and len(batch[name]) == count
        assert {name: len(values) for name, values in batch["metadata"].items()} == {"class": count, "parent": count}
    rows = [row for batch in batches for row in batch["index"].tolist()]
    assert rows == list(range(len(plan)))
    for name, own in (("keys", "key"), ("groups", "group")):
        assert [value for batch in batches for value in batch[name]] == plan.table[own].to_pylist()
    assert [value for batch in batches for value in batch["metadata"]["parent"].to_pylist()] == plan.table[
        "parent"
    ].to_pylist()
    targets = [target for batch in batches for target in batch["targets"].tolist()]
    assert targets == [-1 if target is None else target for target in plan.table["target"].to_pylist()]
    assert targets[-1] == -1


def test_a_target_that_is_not_known_is_minus_one(folder: Path) -> None:
    *_, last = loader(plan_of(folder), batch_size=5, rows_per_unit=50)
    assert last["keys"] == ["owl/5.jpg", "owl/8.webp", "loose.png"]
    assert last["targets"].tolist() == [2, 2, -1]


def test_each_image_stands_in_its_own_row(folder: Path) -> None:
    for batch in loader(plan_of(folder)):
        for image, path, reason in zip(batch["images"], batch["paths"], batch["reasons"], strict=False):
            if reason is None:
                assert torch.equal(image, preprocess(decode(Path(path).read_bytes()), STEPS))
                assert image.any()


def test_bytes_and_sha256_are_those_of_the_file(folder: Path) -> None:
    for batch in loader(plan_of(folder)):
        for path, size, digest in zip(batch["paths"], batch["bytes"], batch["sha256"], strict=True):
            if Path(path).exists():
                data = Path(path).read_bytes()
                assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
            else:
                assert (size, digest) == (None, None)


def test_a_rejected_input_keeps_its_row_and_takes_no_neighbours(folder: Path) -> None:
    reasons = {}
    for batch in loader(plan_of(folder), batch_size=13, rows_per_unit=13):
        for image, key, reason in zip(batch["images"], batch["keys"], batch["reasons"], strict=True):
            reasons[key] = reason
            assert (reason is None) == bool(image.any())
    rejected = {key: reason for key, reason in reasons.items() if reason is not None}
    assert set(rejected) == {"cat/gone.jpg", "dog/bad.jpg"}
    assert rejected["cat/gone.jpg"] == "can't be read: No such file or directory"
    assert rejected["dog/bad.jpg"].startswith("can't be decoded: ")


def test_the_last_batch_is_short_and_padded_with_black(folder: Path) -> None:
    *_, last = loader(plan_of(folder), batch_size=5, rows_per_unit=50)
    assert last["index"].tolist() == [10, 11, 12]
    assert last["images"].shape[0] == 5
    assert last["images"][:3].any() and not last["images"][3:].any()


def test_no_batch_reaches_over_the_end_of_a_unit(folder: Path) -> None:
    plan = plan_of(folder)
    batches = list(loader(plan, batch_size=4, rows_per_unit=6))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11], [12]]
    some = SplitLoader(plan, [range(6, 12), range(12, 13)], DECODER, batch_size=4, workers=0)
    assert [batch["index"].tolist() for batch in some] == [[6, 7, 8, 9], [10, 11], [12]]
    assert len(some) == 3


def test_units_are_cut_into_batches_in_order(folder: Path) -> None:
    plan = plan_of(folder)
    batches = UnitBatches(plan, [range(5), range(8, 10)], 2)
    assert [[order.row for order in batch] for batch in batches] == [[0, 1], [2, 3], [4], [8, 9]]
    assert len(batches) == 4 and len(list(batches.starting_at(3))) == len(batches.starting_at(3)) == 1
    assert [order.path for batch in batches for order in batch][-1] == plan.table["path"][9].as_py()
    assert list(UnitBatches(plan, [], 2)) == []


def test_without_classes_there_are_no_targets(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes((folder / "cat/0.webp").read_bytes())
    (batch,) = loader(plan_of(tmp_path))
    assert "targets" not in batch
    assert batch["groups"] == [None]


def test_one_input_is_a_batch_too_and_workers_get_no_plan(folder: Path) -> None:
    plan = plan_of(folder)
    (order,) = next(iter(UnitBatches(plan, [[2]], 1)))
    dataset = Batches(plan.reader, DECODER, batch_size=4)
    batch = dataset[order]
    assert batch["plan_rows"] == [2] and batch["reasons"] == [None]
    assert batch["images"].shape == (4, 3, 32, 32)
    assert len(pickle.dumps(dataset.reader)) < 1000


def test_paths_that_are_not_utf8_are_read_and_shown(folder: Path, tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.webp", "wb") as file:
        file.write((folder / "cat/0.webp").read_bytes())
    (batch,) = loader(plan_of(tmp_path))
    assert batch["reasons"] == [None]
    assert batch["paths"] == [rf"{tmp_path}/\xff.webp"]


def test_the_batches_are_the_same_bytes_whatever_the_workers_and_no_process_is_left(folder: Path) -> None:
    plan = plan_of(folder)
    alone = [plain(batch) for batch in loader(plan)]
    for workers in (1, 2):
        shared = loader(plan, workers=workers)
        shared.start()
        assert [plain(batch) for batch in shared] == alone
        assert wait_for(lambda: not workers_alive())
    again = loader(plan, workers=1)
    assert [len(list(again)) for _ in range(2)] == [4, 4]
    assert wait_for(lambda: not workers_alive())


def test_workers_that_were_started_and_never_asked_end_with_their_loader(folder: Path) -> None:
    idle = loader(plan_of(folder), workers=1)
    idle.start()
    assert wait_for(lambda: len(workers_alive()) == 1)
    del idle
    assert wait_for(lambda: not workers_alive())


class Fatal(ImageDecoder):
    """Decodes, but what is named below ends its process, as a decoder's fault would, or does not end."""

    def decode_into(self, row: torch.Tensor, data: bytes) -> None:
        if data.startswith(b"SIG"):
            os.kill(os.getpid(), signal.Signals[data.decode()])
        if data == b"exit":
            os._exit(3)
        if data == b"endless":
            while True:
                pass
        if data == b"blocked":
            os.read(os.pipe()[0], 1)
        super().decode_into(row, data)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_inputs_that_end_their_worker_or_never_end_are_rejected_and_no_other(folder: Path, workers: int) -> None:
    place = folder.parent / f"fatal{workers}"
    shutil.copytree(folder, place, symlinks=True)
    contents = {"cat/0a": b"SIGSEGV", "cat/0b": b"SIGBUS", "cat/0c": b"endless", "cat/0d": b"blocked"}
    contents |= {"dog/4a": b"SIGKILL", "dog/4b": b"exit", "owl/8a": b"SIGABRT"}
    for name, content in contents.items():
        (place / f"{name}.jpg").write_bytes(content)
    plan = plan_of(place)
    again = [plan.table["key"].to_pylist().index(f"{name}.jpg") for name in ("cat/0c", "owl/8a")]
    settings: dict[str, Any] = {"batch_size": 4, "workers": workers, "timeout": 1, "again": again}
    batches = list(SplitLoader(plan, plan.unit_rows(8), Fatal(STEPS), **settings))
    assert [row for batch in batches for row in batch["index"].tolist()] == list(range(len(plan)))
    reasons = {key: reason for batch in batches for key, reason in zip(batch["keys"], batch["reasons"], strict=True)}
    for name, content in contents.items():
        reason = reasons.pop(f"{name}.jpg")
        assert reason.endswith(" (tried twice)") == (content in (b"endless", b"SIGABRT"))
        reason = reason.removesuffix(" (tried twice)")
        if content in (b"endless", b"blocked"):
            assert reason == "no end within --timeout"
        elif content == b"exit":
            assert reason == "decoder ended its process with exit code 3"
        else:
            assert reason == f"decoder crashed: {content.decode()}"
    images = {key: image for batch in batches for key, image in zip(batch["keys"], batch["images"], strict=False)}
    assert not any(images[f"{name}.jpg"].any() for name in contents)
    for batch in loader(plan_of(folder)):
        for key, image, reason in zip(batch["keys"], batch["images"], batch["reasons"], strict=False):
            assert torch.equal(images[key], image) and reasons.pop(key) == reason
    assert not reasons and wait_for(lambda: not workers_alive())


@pytest.mark.timeout(90)
def test_the_first_reject_that_ends_a_run_is_the_first_of_the_plan(folder: Path) -> None:
    """Not the one that is found first: a worker decodes ahead while another one is cut off."""
    place = folder.parent / "first"
    shutil.copytree(folder, place, symlinks=True)
    (place / "cat/0a.jpg").write_bytes(b"blocked")
    plan = plan_of(place)
    loaders = {"all": SplitLoader(plan, plan.unit_rows(8), Fatal(STEPS), batch_size=1, workers=2, timeout=1)}
    with pytest.raises(InputError, match=r"^cat/0a\.jpg: no end within --timeout; repair"):
        run_test(torch.nn.Identity(), loaders, [RejectedInputs("fail")], DataConnector({"input": "images"}))
    del loaders
    gc.collect()
    assert wait_for(lambda: not workers_alive())


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """While this lasts, the process may have only 100 MB more than it has."""
    size = psutil.Process().memory_info().vms + 100_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class PoorReader(FileReader):
    def read(self, path: bytes, offset: int | None = None, size: int | None = None, *_: object) -> bytes:
        with little_memory():
            return super().read(path, offset, size, 1 << 40)


class PoorDecoder(ImageDecoder):
    def decode_into(self, row: torch.Tensor, data: bytes) -> None:
        with little_memory():
            super().decode_into(row, data)


def test_what_does_not_fit_into_memory_is_rejected_and_the_worker_lives_on(folder: Path) -> None:
    place = folder.parent / "large"
    (place / "cat").mkdir(parents=True)
    for name in ("a.bmp", "b.png"):
        Image.new("RGB", (6000, 6000)).save(place / "cat" / name)
    with open(place / "cat/c.jpg", "wb") as sparse:
        sparse.truncate(1 << 33)
    shutil.copy(folder / "cat/0.webp", place / "cat/d.webp")
    plan = dataclasses.replace(plan_of(place), reader=PoorReader())
    batches = list(SplitLoader(plan, plan.unit_rows(4), PoorDecoder(STEPS), batch_size=1, workers=1, max_bytes=1 << 40))
    assert [reason for batch in batches for reason in batch["reasons"]] == [NO_MEMORY] * 3 + [None]
    assert torch.equal(batches[3]["images"][0], preprocess(decode((folder / "cat/0.webp").read_bytes()), STEPS))


@pytest.mark.soak
@pytest.mark.timeout(90)
def test_a_read_that_nothing_can_end_is_given_up_and_so_is_its_process(folder: Path, tmp_path: Path) -> None:
    """A dead mount, as of FUSE: what reads from it can't even be killed."""
    mounted, place = tmp_path / "mounted", tmp_path / "images"
    for made in (mounted, place / "cat"):
        made.mkdir(parents=True)
    shutil.copy(folder / "cat/0.webp", place / "cat/a.webp")
    (place / "cat/b.jpg").symlink_to(mounted / "file.jpg")
    shutil.copy(folder / "cat/0.webp", place / "cat/c.webp")
    script = Path(__file__).parents[2] / "dead_mount.py"
    with subprocess.Popen([sys.executable, script, mounted], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout and server.stderr
            if server.stdout.read(7) != b"mounted":
                pytest.skip(f"no FUSE here: {server.stderr.read()[-200:]!r}")
            plan = plan_of(place)
            struck = SplitLoader(plan, plan.unit_rows(3), DECODER, batch_size=3, workers=1, timeout=1)
            (batch,) = struck
            (stuck,) = workers_alive()
            assert stuck.status() == psutil.STATUS_DISK_SLEEP
            assert batch["reasons"] == [None, "no end of reading it within --timeout", None]
            assert batch["unavailable"] == [False, True, False]
            assert all(image.any() for image in batch["images"][[0, 2]]) and not batch["images"][1].any()
        finally:
            server.kill()
            subprocess.run(["umount", "--lazy", mounted], check=False)
    assert wait_for(lambda: not workers_alive())


@pytest.mark.timeout(90)
def test_a_worker_that_somebody_killed_is_replaced(folder: Path) -> None:
    plan = plan_of(folder)
    # The same units over and over: more than the workers decode ahead.
    many = SplitLoader(plan, plan.unit_rows(1) * 20, DECODER, batch_size=1, workers=2)
    rows = []
    for number, batch in enumerate(many):
        rows += batch["index"].tolist()
        if number == 1:
            victim, *_ = workers_alive()
            victim.send_signal(signal.SIGKILL)
    assert rows == list(range(len(plan))) * 20
    assert wait_for(lambda: not workers_alive())


def die(niceness: int, worker: int) -> None:
    os._exit(worker)


@pytest.mark.timeout(90)
def test_workers_that_die_whatever_they_do_end_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(folder)
    monkeypatch.setattr("embedx.data.loading.loaders._FRUITLESS_RESTARTS", 1)
    doomed = SplitLoader(plan, plan.unit_rows(8), DECODER, batch_size=4, workers=1)
    monkeypatch.setattr("embedx.data.loading.torch_workers._start_worker", die)
    with pytest.raises(LoaderError, match=r"die again and again .*give fewer --workers"):
        list(doomed)
    assert wait_for(lambda: not workers_alive())

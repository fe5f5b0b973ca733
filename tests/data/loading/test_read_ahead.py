"""Inputs behind URLs are read before they are decoded; the reference is what the same inputs give one by one."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedx.data.decoding.batch_rows import DenseDecoder
from embedx.data.loading import fetches, read_ahead, shared_blocks
from embedx.data.loading.fetches import neighbours
from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.orders import Order
from embedx.data.loading.read_ahead import ReadAhead
from embedx.data.loading.shared_blocks import BLOCK, SharedBlocks
from embedx.data.plan import SplitPlan, build_plan
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources import parse_data
from embedx.system import file_systems, remote
from embedx.values import MOST_READS
from tests.data.sources.test_tar import pack
from tests.slow_server import SlowServer

COUNT = 40
UNREAD = "no end of reading it within --timeout"


class FirstBytes(DenseDecoder):
    """Keeps the first 8 bytes of each input; some of its inputs end the process that decodes them."""

    entry = "first"

    def empty(self, batch_size: int) -> Tensor:
        return torch.empty(batch_size, 8, dtype=torch.uint8)

    def decode_into(self, row: Tensor, data: bytes) -> None:
        if data.startswith(b"damaged") or not data:
            raise RejectedInputError("can't be decoded")
        if data.startswith(b"ends"):
            os._exit(7)
        row.copy_(torch.frombuffer(bytearray(data[:8]), dtype=torch.uint8))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    file_systems.forget()
    yield
    file_systems.forget()


@pytest.fixture
def files() -> dict[str, bytes]:
    return {f"www/{number:03d}.jpg": bytes([number]) * (100 + 7 * number) for number in range(COUNT)}


def plan_of(folder: Path, locations: list[str]) -> SplitPlan:
    (folder / "inputs.csv").write_text("path\n" + "\n".join(locations) + "\n")
    return build_plan(parse_data([str(folder / "inputs.csv")]), None).splits["all"]


def load(plan: SplitPlan, *, workers: int = 0, batch_size: int = 8, **settings: Any) -> dict[str, list[Any]]:
    """The entries of all batches, one after another."""
    rows: dict[str, list[Any]] = {}
    loader = SplitLoader(plan, [range(len(plan))], FirstBytes(), batch_size=batch_size, workers=workers, **settings)
    for batch in loader:
        for name in ("keys", "reasons", "unavailable", "bytes", "sha256"):
            rows.setdefault(name, []).extend(batch[name])
        rows["index"] = rows.get("index", []) + batch["index"].tolist()
    return rows


@pytest.mark.parametrize("reads", [None, 1, 3, 64])
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_all_is_as_without_reading_ahead_however_many_are_in_flight(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, scheme: str, reads: int | None
) -> None:
    files["www/003.jpg"] = b"damaged"
    files["www/009.jpg"] = b""
    del files["www/005.jpg"], files["www/038.jpg"]
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    server = SlowServer(files, 0.005)
    with server as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        begin = "s3://www" if scheme == "s3" else f"{url}/www"
        names = [f"{number:03d}.jpg" for number in range(COUNT)]
        found = load(plan_of(tmp_path, [f"{begin}/{name}" for name in names]), reads=reads)
    local = load(plan_of(tmp_path, [f"{tmp_path}/www/{name}" for name in names]))
    for name in ("bytes", "sha256", "index"):
        assert found[name] == local[name]
    assert found["reasons"][3] == local["reasons"][3] == "can't be decoded"
    assert [number for number, reason in enumerate(found["reasons"]) if reason] == [3, 5, 9, 38]
    assert found["reasons"][5] == "can't be read: not found" and not any(found["unavailable"])
    assert server.most_at_once <= (reads or MOST_READS)
    assert len([path for path, _ in server.requests if path == "www/000.jpg"]) == 1


def test_reads_are_in_flight_together_and_go_on_over_the_end_of_a_batch(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    server = SlowServer(files, 0.1)
    with server as url:
        plan = plan_of(tmp_path, [f"{url}/{path}" for path in files])
        begun = time.monotonic()
        loader = SplitLoader(plan, [range(COUNT)], FirstBytes(), batch_size=4, workers=0, reads=10)
        batches = iter(loader)
        next(batches)
        asked = len(server.requests)
        rest = list(batches)
        seconds = time.monotonic() - begun
    assert len(rest) == COUNT // 4 - 1 and 7 <= server.most_at_once <= 10
    assert asked >= 10 and seconds < 0.5 * COUNT * 0.1  # one by one it takes COUNT * 0.1


def test_an_input_that_hangs_is_given_up_alone_by_the_same_worker(tmp_path: Path, files: dict[str, bytes]) -> None:
    server = SlowServer(files)
    server.hanging = {"www/002.jpg", "www/004.jpg", "www/019.jpg"}
    with server as url:
        begun = time.monotonic()
        found = load(plan_of(tmp_path, [f"{url}/{path}" for path in files]), workers=1, timeout=1.5, reads=6)
        seconds = time.monotonic() - begun
    assert [number for number, reason in enumerate(found["reasons"]) if reason] == [2, 4, 19]
    assert {found["reasons"][number] for number in (2, 4, 19)} == {UNREAD}
    assert [number for number, away in enumerate(found["unavailable"]) if away] == [2, 4, 19]
    asked = [path for path, _ in server.requests]
    assert len(asked) == len(set(asked)) == COUNT  # as no worker was replaced
    assert seconds < 12


def test_those_that_hang_are_given_up_together(files: dict[str, bytes]) -> None:
    server = SlowServer(files)
    server.hanging = set(files) - {"www/039.jpg"}
    with server as url:
        ahead = ReadAhead(4, 0.5, 1 << 20)
        orders = [Order(row, f"{url}/{path}".encode(), None, None) for row, path in enumerate(files)][:7]
        orders.append(Order(7, f"{url}/www/039.jpg".encode(), None, None))
        ahead.expect(orders)
        begun = time.monotonic()
        for order in orders[:7]:
            with pytest.raises(fetches.UnreadError):
                ahead.take(order, lambda: None)
        assert ahead.take(orders[7], lambda: None) == files["www/039.jpg"]
        assert time.monotonic() - begun < 2.5  # two rounds of four, and not seven one by one


def test_an_input_whose_decoding_ends_its_process_is_named_and_no_other(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    files["www/011.jpg"] = b"ends its process"
    with SlowServer(files, 0.01) as url:
        found = load(plan_of(tmp_path, [f"{url}/{path}" for path in files]), workers=1)
    assert [number for number, reason in enumerate(found["reasons"]) if reason] == [11]
    assert found["reasons"][11] == "decoder ended its process with exit code 7"


def test_bytes_that_are_held_stay_within_the_bound(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path: bytes(1000) for path in files}
    monkeypatch.setattr(read_ahead, "MOST_HELD", 5500)
    server = SlowServer(files)
    with server as url:
        ahead = ReadAhead(64, 10, 1 << 20)
        orders = [Order(row, f"{url}/{path}".encode(), None, 1000) for row, path in enumerate(files)]
        ahead.expect(orders)
        for taken, order in enumerate(orders):
            assert len(ahead.take(order, lambda: None)) == 1000
            assert len(server.requests) <= taken + 1 + 5
        assert ahead._held == 0


def test_inputs_of_unknown_size_are_read_whatever_it_is(files: dict[str, bytes]) -> None:
    files = {"www/a": bytes(10), "www/b": bytes(3 << 20), "www/c": bytes(9 << 20), "www/d": bytes(10)}
    server = SlowServer(files)
    with server as url:
        ahead = ReadAhead(None, 10, 8 << 20)
        orders = [Order(row, f"{url}/{path}".encode(), None, None) for row, path in enumerate(files)]
        ahead.expect(orders)
        assert len(ahead.take(orders[0], lambda: None)) == 10
        assert len(ahead.take(orders[1], lambda: None)) == 3 << 20
        with pytest.raises(RejectedInputError, match=r"^more than the 8.0 MiB of --max-bytes$"):
            ahead.take(orders[2], lambda: None)
        assert len(ahead.take(orders[3], lambda: None)) == 10 and ahead._held == 0


def test_a_file_that_has_grown_since_it_was_listed_is_read_whole(files: dict[str, bytes]) -> None:
    with SlowServer(files) as url:
        ahead = ReadAhead(None, 10, 1 << 20)
        order = Order(0, f"{url}/www/020.jpg".encode(), None, 5)
        ahead.expect([order])
        assert ahead.take(order, lambda: None) == files["www/020.jpg"]


def members(count: int, size: int) -> list[tuple[int, int]]:
    return [(512 + number * (size + 512), size) for number in range(count)]


def orders_at(url: str, places: list[tuple[int, int]]) -> list[Order]:
    return [Order(row, url.encode(), offset, size) for row, (offset, size) in enumerate(places)]


def test_neighbours_in_a_file_are_one_read_and_each_has_its_own_bytes() -> None:
    data = np.random.default_rng(0).bytes(100_000)
    server = SlowServer({"www/a.tar": data})
    with server as url:
        ahead = ReadAhead(None, 10, 1 << 20)
        orders = orders_at(f"{url}/www/a.tar", members(50, 1000))
        ahead.expect(orders)
        for order in orders:
            assert order.offset is not None and order.size is not None
            assert ahead.take(order, lambda: None) == data[order.offset : order.offset + order.size]
        assert server.requests == [("www/a.tar", (512, 50 * 1512))] and ahead._held == 0


def test_where_a_read_of_several_fails_each_is_read_alone_and_tells_its_own_reason() -> None:
    server = SlowServer({"www/a.tar": bytes(7000)})
    server.broken_ranges = True
    with server as url:
        ahead = ReadAhead(None, 10, 1 << 20)
        orders = orders_at(f"{url}/www/a.tar", members(10, 1000))
        ahead.expect(orders)
        for order in orders[:4]:
            assert ahead.take(order, lambda: None) == bytes(1000)
        with pytest.raises(RejectedInputError, match=r"^the file ends after 440 of the input's 1000 bytes$"):
            ahead.take(orders[4], lambda: None)
        with pytest.raises(RejectedInputError):
            ahead.take(orders[5], lambda: None)


def test_neighbours_are_cut_where_they_are_far_large_or_of_other_files() -> None:
    def cut(*places: tuple[str, int | None, int | None]) -> list[list[int]]:
        orders = [Order(row, path.encode(), offset, size) for row, (path, offset, size) in enumerate(places)]
        return [[order.row for order in some] for some in neighbours(orders, 5 << 20)]

    assert cut(("a", 0, 10), ("a", 20, 10), ("b", 30, 10)) == [[0, 1], [2]]
    assert cut(("a", 20, 10), ("a", 0, 10)) == [[0], [1]]
    assert cut(("a", 0, 10), ("a", 1 << 20, 10)) == [[0], [1]]
    assert cut(("a", 0, 4 << 20), ("a", 4 << 20, 4 << 20), ("a", 8 << 20, 1)) == [[0, 1], [2]]
    assert cut(("a", 0, 1), ("a", 1, 6 << 20), ("a", (6 << 20) + 1, 1)) == [[0], [1], [2]]
    assert cut(("a", None, 10), ("a", None, 10)) == [[0], [1]]
    assert cut(("a", 0, None), ("a", 10, 10)) == [[0], [1]]


def test_local_files_have_no_threads(tmp_path: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    loader = SplitLoader(
        plan_of(tmp_path, [f"{tmp_path}/{path}" for path in files]),
        [range(COUNT)],
        FirstBytes(),
        batch_size=8,
        workers=0,
    )
    before = threading.active_count()
    for batch in loader:
        assert threading.active_count() == before and "sha256" in batch
    assert loader._dataset._ahead is None


def test_a_tar_s_members_are_read_in_place(tmp_path: Path) -> None:
    contents = {f"{number:03d}.jpg": np.random.default_rng(number).bytes(3000) for number in range(COUNT)}
    pack(tmp_path / "a.tar", contents)
    server = SlowServer({"www/a.tar": (tmp_path / "a.tar").read_bytes()})
    with server as url:
        plan = build_plan(parse_data([f"{url}/www/a.tar"]), None).splits["all"]
        server.requests.clear()
        found = load(plan)
    assert found["sha256"] == [hashlib.sha256(data).hexdigest() for data in contents.values()]
    assert len(server.requests) == 1


@pytest.mark.parametrize("size", [3000, 100_000])
def test_a_tar_is_indexed_by_few_reads(size: int, tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {f"{number:04d}.jpg": bytes([number % 256]) * size for number in range(300)})
    data = (tmp_path / "a.tar").read_bytes()
    server = SlowServer({"www/a.tar": data})
    with server as url:
        assert len(build_plan(parse_data([f"{url}/www/a.tar"]), None).splits["all"]) == 300
    # One to see that ranges are sent, one for the first header, and the rest by 16 MiB.
    assert len(server.requests) <= 2 + -(-len(data) // (16 << 20))


def test_of_large_members_only_the_headers_are_read(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {f"{number}.jpg": bytes(6 << 20) for number in range(5)})
    server = SlowServer({"www/a.tar": (tmp_path / "a.tar").read_bytes()})
    with server as url:
        assert len(build_plan(parse_data([f"{url}/www/a.tar"]), None).splits["all"]) == 5
    assert sum(part[1] - part[0] for _, part in server.requests if part) < 1 << 20


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_of_ten_thousand_members_there_is_a_request_for_4_mib_at_most(tmp_path: Path, workers: int) -> None:
    """Index and reading together, with 50 ms a request."""
    contents = {f"{number:05d}.jpg": number.to_bytes(8, "little") * 1250 for number in range(10_000)}
    pack(tmp_path / "a.tar", contents)
    data = (tmp_path / "a.tar").read_bytes()
    server = SlowServer({"www/a.tar": data}, 0.05)
    with server as url:
        plan = build_plan(parse_data([f"{url}/www/a.tar"]), None).splits["all"]
        indexed = len(server.requests)
        found = load(plan, workers=workers, batch_size=32)
    assert found["sha256"] == [hashlib.sha256(content).hexdigest() for content in contents.values()]
    assert not any(found["reasons"])
    read = sum(part[1] - part[0] for _, part in server.requests[indexed:] if part)
    assert len(server.requests) <= len(data) / (4 << 20) and read < len(data) + 2 * BLOCK


def test_a_block_is_fetched_once_and_again_where_it_was_left_half_written(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(BLOCK + 5000)
    server = SlowServer({"www/a.tar": data})
    with server as url:
        blocks = SharedBlocks(str(tmp_path / "blocks"), 2)
        for start, end in ((0, 10), (100, 2000), (BLOCK - 5, BLOCK + 7), (BLOCK + 4990, BLOCK + 6000)):
            assert blocks.read(f"{url}/www/a.tar", start, end) == data[start:end]
        assert len(server.requests) == 2
        for path in (tmp_path / "blocks").iterdir():
            with path.open("r+b") as file:
                file.write(bytes(8))
        assert blocks.read(f"{url}/www/a.tar", 0, 10) == data[:10] and len(server.requests) == 3
        assert blocks.read(f"{url}/www/gone", 0, 10) is None


def test_old_blocks_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_blocks, "BLOCK", 1000)
    with SlowServer({"www/a.tar": bytes(40_000)}) as url:
        blocks = SharedBlocks(str(tmp_path / "blocks"), 2)
        assert blocks.read(f"{url}/www/a.tar", 0, 40_000) == bytes(40_000)
    assert len(list((tmp_path / "blocks").iterdir())) == 12

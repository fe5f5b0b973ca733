"""Stores in a bucket: the bytes of a local store, whatever the server and the network do, by real runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedx
from embedx import sample
from embedx.errors import StoreReplacedError
from embedx.names import LOCK, MANIFEST, PROBE
from tests.buckets import (
    BUCKET,
    EXTRACT,
    HOLD_SECONDS,
    PLACE,
    URL,
    Bucket,
    Command,
    assert_plain,
    features,
    first_of_each,
    refusal,
)
from tests.folders import draw_folder
from tests.runs import assert_gone, descendants, digests, run
from tests.s3_proxy import LOSE, RESET, Fault, Request, S3Proxy, s3_proxy
from tests.servers import no_access

pytestmark = pytest.mark.timeout(300)
soak = pytest.mark.soak


@pytest.fixture(scope="module")
def running() -> Iterator[S3Proxy]:
    with s3_proxy() as proxy:
        yield proxy


@pytest.fixture
def bucket(running: S3Proxy) -> Iterator[Bucket]:
    bucket = Bucket(running)
    bucket.empty()
    yield bucket
    running.forget()


@pytest.fixture
def proxy(bucket: Bucket) -> S3Proxy:
    return bucket.proxy


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    features(root / "inputs", {"train": 6, "val": 3})
    return root


@pytest.fixture(scope="module")
def command(root: Path) -> Command:
    command = Command(*EXTRACT, "--data", root / "inputs")
    command.run_locally(root / "local")
    return command


def writes(request: Request) -> bool:
    return request.method in ("PUT", "POST", "DELETE")


def puts(request: Request) -> bool:
    return request.method == "PUT"


def kinds(requests: list[Request]) -> set[str]:
    """The kinds of objects that were written."""
    keys = {re.sub(r"^.*/", "", one.key) for one in requests if one.method == "PUT"}
    return {re.sub(r".*(\.safetensors|\.parquet)$", r"\1", key) for key in keys}


# The bytes


IMAGES = [sample.BACKBONE, "--weights", "sample", "--shard-size", "16416", "--workers", "1"]
FEATURES = ["none", "--shard-size", "1056", "--workers", "0", "--devices", "cpu,cpu"]


@pytest.mark.parametrize(
    "how", [IMAGES, pytest.param(FEATURES, marks=pytest.mark.soak)], ids=["one-process", "two-members"]
)
def test_a_store_in_a_bucket_has_the_bytes_of_a_local_one(
    tmp_path: Path, bucket: Bucket, root: Path, how: list[str]
) -> None:
    inputs = draw_folder(tmp_path / "images", {"train": 4, "val": 2}) if how is IMAGES else root / "inputs"
    command = Command("extract", "--data", inputs, "--group-key", "class", "-b", "4", "--backbone", *how)
    command.run_locally(tmp_path / "local")
    done = command.run()
    assert (done.returncode, done.stdout) == (0, f"{URL}/manifest.json\n"), done.stderr
    assert_plain(done.stderr)
    bucket.assert_is(command.local)
    assert not [key for key in bucket.names() if key.endswith((LOCK, PROBE))]
    local = tmp_path / "local" / MANIFEST
    ours, theirs = (json.loads(text) for text in (bucket.read(f"{PLACE}/{MANIFEST}"), local.read_bytes()))
    assert (ours["settings"].pop("out"), theirs["settings"].pop("out")) == (URL, str(tmp_path / "local"))
    for name in ("timings", "sha256"):
        ours.pop(name), theirs.pop(name)
    assert ours == theirs


def test_the_same_command_again_is_up_to_date_and_writes_no_file_of_the_store(
    bucket: Bucket, proxy: S3Proxy, command: Command, root: Path
) -> None:
    command.complete()
    proxy.forget()
    done = command.run()
    assert done.returncode == 0 and "up to date: 18 rows" in done.stderr, done.stderr
    assert {one.key for one in proxy.requests if writes(one)} <= {f"{PLACE}/{LOCK}", f"{PLACE}/{PROBE}"}
    assert sum(one.bytes_down for one in proxy.requests) < 100_000
    bucket.assert_is(command.local)
    assert_fetches_no_more_than_it_needs(bucket, proxy, root)


def assert_fetches_no_more_than_it_needs(bucket: Bucket, proxy: S3Proxy, root: Path) -> None:
    proxy.forget()
    ours, theirs = embedx.open(URL).load("val"), embedx.open(root / "local").load("val")
    assert ours.keys == theirs.keys and np.array_equal(ours.embeddings, theirs.embeddings)
    requests = proxy.forget()
    assert not [str(one) for one in requests if "/train/" in one.path and one.path.endswith(".safetensors")]
    sizes = {path: os.stat(root / "local" / path).st_size for path in digests(root / "local")}
    needed = sum(size for path, size in sizes.items() if path.startswith(("val/", "index/")))
    fetched = sum(one.bytes_down for one in requests if "list-type" not in one.query)
    manifest = len(bucket.read(f"{PLACE}/{MANIFEST}"))
    proxy.client.put_object(Bucket=BUCKET, Key=f"{PLACE}/{PROBE}", Body=b"")  # of a run that begins
    assert list(embedx.verify(URL)) == []
    assert fetched <= needed + 3 * manifest, (fetched, needed, [(str(one), one.bytes_down) for one in requests])


@soak
def test_stores_whose_names_begin_alike_and_files_beside_them_stay_apart(bucket: Bucket, command: Command) -> None:
    places = [PLACE, f"{PLACE}2", f"{PLACE}/below", "stores/ä b+c%"]
    for place in places[:2]:
        command.complete(f"s3://{BUCKET}/{place}")
    bucket.proxy.client.put_object(Bucket=BUCKET, Key="stores/stranger.txt", Body=b"mine")
    done = Command(*command.arguments, "--overwrite").run(f"{URL}/")  # with a slash at its end
    assert done.returncode == 0, done.stderr
    for place in places[:2]:
        bucket.assert_is(command.local, place)
    command.complete(f"s3://{BUCKET}/{places[3]}")
    bucket.assert_is(command.local, places[3])
    assert bucket.read("stores/stranger.txt") == b"mine"


@soak
def test_other_objects_at_the_place_are_refused_and_stay(bucket: Bucket, proxy: S3Proxy, command: Command) -> None:
    proxy.client.put_object(Bucket=BUCKET, Key=f"{PLACE}/train/holiday.jpg", Body=b"mine")
    done = command.run()
    assert done.returncode == 2, done.stderr
    assert URL in refusal(done.stderr)
    assert bucket.names() == [f"{PLACE}/train/holiday.jpg"]


# What server and network do


STORMS: dict[str, Any] = {
    "lost-answers": (first_of_each, writes, LOSE),
    "resets": (first_of_each, lambda request: True, RESET),
    "409": (first_of_each, puts, Fault(status=409)),
    "412": (first_of_each, puts, Fault(status=412)),
    "500": (first_of_each, lambda request: True, Fault(status=500)),
    "503": (lambda matches: matches, lambda request: request.number % 3 == 0, Fault(status=503)),
    "cut-bodies": (first_of_each, lambda request: request.method == "GET", Fault(cut=100)),
}


@pytest.mark.parametrize(
    "storm", ["lost-answers", *(pytest.param(one, marks=soak) for one in STORMS if one != "lost-answers")]
)
def test_a_run_in_a_storm_is_completed_by_itself_or_by_the_same_command(
    bucket: Bucket, proxy: S3Proxy, command: Command, storm: str
) -> None:
    choose, matches, fault = STORMS[storm]
    proxy.on(choose(matches), fault)
    done = command.run()
    requests = proxy.forget()
    assert_plain(done.stderr)
    assert {".embedx.probe", ".safetensors", ".parquet", MANIFEST} <= kinds(requests) or done.returncode
    if storm != "412":  # there, that another run interferes is the right answer
        assert done.returncode == 0, (done.stderr, [str(one) for one in requests])
    command.complete()
    bucket.assert_is(command.local)


@soak
def test_a_slow_network_only_takes_longer(bucket: Bucket, proxy: S3Proxy, command: Command) -> None:
    proxy.latency, proxy.bytes_per_second = 0.1, 200_000
    command.complete()
    proxy.forget()
    bucket.assert_is(command.local)


@soak
def test_a_server_that_refuses_for_good_ends_the_run_and_the_same_command_goes_on(
    bucket: Bucket, proxy: S3Proxy, command: Command
) -> None:
    """Its rights are taken away while the run writes."""
    proxy.on(lambda request: puts(request) and request.key.endswith("val-00000.parquet"), Fault(status=403))
    done = command.run()
    assert done.returncode == 1 and URL in done.stderr, done.stderr
    assert_plain(done.stderr)
    proxy.forget()
    command.complete()
    bucket.assert_is(command.local)


# Refusals


@pytest.mark.parametrize("header", ["If-None-Match", pytest.param("If-Match", marks=soak)])
def test_a_server_without_conditions_is_refused_before_any_work(
    tmp_path: Path, bucket: Bucket, proxy: S3Proxy, header: str
) -> None:
    model = "from torch.nn import Flatten\ndef Model():\n  open({!r}, 'w').close()\n  return Flatten()\n"
    (tmp_path / "touching.py").write_text(model.format(str(tmp_path / "model")))
    bucket.upload(sample.IMAGES / "val", "inputs")
    proxy.ignored = (header.lower(),)
    arguments = ["--backbone", "touching:Model", "--data", f"s3://{BUCKET}/inputs", "--out", URL]
    arguments += ["--image-size", "8", "--mean", "0.5", "--std", "0.5"]
    done = run("extract", *arguments, env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 2, done.stderr
    line = refusal(done.stderr)
    assert URL in line and header in line
    assert not (tmp_path / "model").exists()
    assert [str(one) for one in proxy.requests if "inputs" in f"{one.path}{one.query}"] == []
    assert bucket.names() == []


def test_wrong_credentials_are_one_message(bucket: Bucket, command: Command) -> None:
    began = time.monotonic()
    with no_access():
        done = command.run()
    assert done.returncode in (1, 2), done.stderr
    line = refusal(done.stderr)
    assert URL in line and "no access" in line
    assert time.monotonic() - began < 10


def test_no_credentials_are_one_message(bucket: Bucket, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    done = command.run(AWS_EC2_METADATA_DISABLED="true", HOME="/nonexistent")
    assert done.returncode in (1, 2), done.stderr
    assert URL in refusal(done.stderr)


def test_a_bucket_that_is_not_there_is_one_message(bucket: Bucket, command: Command) -> None:
    done = command.run("s3://no-such-bucket/stores/one")
    assert done.returncode == 2, done.stderr
    line = refusal(done.stderr)
    assert "s3://no-such-bucket" in line and "no such bucket" in line


def test_a_bucket_that_can_only_be_read_is_one_message(bucket: Bucket, proxy: S3Proxy, command: Command) -> None:
    proxy.on(writes, Fault(status=403))
    done = command.run()
    assert done.returncode in (1, 2), done.stderr
    line = refusal(done.stderr)
    assert URL in line and "no access" in line
    assert bucket.names() == []


def test_a_server_that_is_not_there_is_one_message(command: Command) -> None:
    done = command.run(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert done.returncode == 1, done.stderr
    assert URL in refusal(done.stderr)


# Stores that take an older one's place


@soak
def test_a_new_generation_takes_over_and_the_old_ones_objects_go(
    bucket: Bucket, proxy: S3Proxy, tmp_path: Path
) -> None:
    inputs = features(tmp_path / "inputs", {"train": 6, "val": 3})
    command = Command(*EXTRACT, "--data", inputs)
    command.run_locally(tmp_path / "local")
    command.complete()
    reader = embedx.open(URL)
    for flags in (["--overwrite"], ["--update", "--max-gone", "50%"]):
        victim = sorted((inputs / "train" / "ant").iterdir())[0]
        np.save(victim, np.full(64, len(flags), np.float32))  # changed
        sorted((inputs / "train" / "bee").iterdir())[0].unlink()
        changing = Command(*command.arguments, *flags)
        changing.run_locally(tmp_path / "local")
        changing.complete()
        bucket.assert_is(changing.local)
        with pytest.raises(StoreReplacedError):
            reader.load("val")
        assert len(embedx.open(URL).load("val")) == 6
        reader = embedx.open(URL)
        assert "up to date" in command.complete()


@soak
def test_rejected_inputs_are_tried_again(bucket: Bucket, tmp_path: Path) -> None:
    inputs = features(tmp_path / "inputs", {"train": 4})
    np.save(inputs / "train" / "ant" / "01.npy", np.full(64, np.nan, np.float32))
    command = Command(*EXTRACT, "--data", inputs)
    command.complete(code=3)
    assert run(*command.arguments, "--out", tmp_path / "local").returncode == 3
    again = Command(*command.arguments, "--retry-rejected", "--allow-nonfinite")
    again.run_locally(tmp_path / "local")
    again.complete()
    bucket.assert_is(again.local)


@soak
def test_a_reader_that_began_before_goes_on_or_says_that_the_store_was_replaced(
    bucket: Bucket, proxy: S3Proxy, command: Command
) -> None:
    command.complete()
    reader = embedx.open(URL)
    first = reader.load("val")
    replacing = Command(*command.arguments, "--overwrite")
    replacing.complete()
    try:
        again = reader.load("val")
        assert again.keys == first.keys and np.array_equal(again.embeddings, first.embeddings)
    except StoreReplacedError as error:
        assert URL in str(error)


# Two runs at once


def start_and_stall(proxy: S3Proxy, command: Command) -> subprocess.Popen[str]:
    """Starts a run, with a short hold, whose index tables the proxy does not let through."""
    proxy.hold(lambda request: puts(request) and request.key.endswith(".parquet"))
    process = command.start(short_hold=True)
    assert proxy.wait_held(process), process.communicate()
    return process


def kill(proxy: S3Proxy, process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    proxy.release(forward=False)
    proxy.settle()


def elsewhere(bucket: Bucket) -> None:
    """Has the hold look as if it were of a run on another machine."""
    key = f"{PLACE}/{LOCK}"
    hold = json.loads(bucket.read(key))
    hold["process"][0] = "of another start"
    bucket.proxy.client.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(hold).encode())


@soak
def test_a_second_run_says_who_holds_the_store(bucket: Bucket, proxy: S3Proxy, command: Command) -> None:
    first = start_and_stall(proxy, command)
    time.sleep(HOLD_SECONDS * 1.5)  # so that it has to have been renewed
    second = command.run()
    proxy.release()
    _, stderr = first.communicate(timeout=60)
    assert second.returncode == 75 and second.stdout == "", second.stderr
    line = refusal(second.stderr)
    assert f"process {first.pid} on {os.uname().nodename}" in line and URL in line
    assert first.returncode == 0, stderr
    bucket.assert_is(command.local)


@soak
@pytest.mark.parametrize("skew", [0, -600, 600])
def test_a_hold_that_a_killed_run_of_another_machine_has_left_is_taken_over_after_its_time(
    bucket: Bucket, proxy: S3Proxy, command: Command, skew: float
) -> None:
    """Whatever the clocks of the server and of this machine say."""
    proxy.skew = skew
    kill(proxy, start_and_stall(proxy, command))
    elsewhere(bucket)
    began = time.monotonic()
    command.complete()
    assert time.monotonic() - began >= HOLD_SECONDS - 1
    bucket.assert_is(command.local)


@soak
@pytest.mark.parametrize("kind", ["fresh", "left"])
def test_of_several_runs_that_begin_at_once_one_works(
    bucket: Bucket, proxy: S3Proxy, command: Command, kind: str
) -> None:
    """Also where each of them finds a hold that a killed run has left, and takes it over."""
    if kind == "left":
        kill(proxy, start_and_stall(proxy, command))
    proxy.latency = 0.05  # so that each looks before another one has written
    runs = [command.start() for _ in range(3)]
    said = [run.communicate(timeout=100)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes[0] == 0 and set(codes) <= {0, 75}, said
    assert sum("18 rows, 0 rejected" in text for text in said) == 1, said
    proxy.forget()
    bucket.assert_is(command.local)


@soak
@pytest.mark.parametrize("kind", [[], ["--overwrite"]], ids=["begun", "overwriting"])
def test_a_run_that_was_stopped_and_wakes_when_another_has_taken_over_does_no_harm(
    bucket: Bucket, proxy: S3Proxy, command: Command, kind: list[str]
) -> None:
    if kind:
        command.complete()
        proxy.forget()
    changing = Command(*command.arguments, *kind)
    changing.local = command.local
    first = start_and_stall(proxy, changing)
    family = descendants(first)
    os.killpg(first.pid, signal.SIGSTOP)
    proxy.release()
    proxy.settle()
    changing.complete()
    bucket.assert_is(command.local)
    os.killpg(first.pid, signal.SIGCONT)
    _, stderr = first.communicate(timeout=60)
    assert first.returncode in (0, 1, 75), stderr
    assert_plain(stderr)
    assert_gone(family, 10)
    bucket.assert_is(command.local)


# Readers (see tests/cli/test_buckets.py and tests/store/reading/test_remote_stores.py as well)


@soak
def test_commands_on_the_url_say_what_they_say_of_a_folder(
    bucket: Bucket, proxy: S3Proxy, command: Command, root: Path
) -> None:
    command.complete()
    local = root / "local"
    for verb in (["verify"], ["info"], ["compare", str(local)]):
        done = run(*verb, URL)
        assert done.returncode == 0, (verb, done.stderr)
        assert_plain(done.stderr)
    ours, theirs = (json.loads(run("probe", "--json", place).stdout) for place in (URL, local))
    assert ours.pop("store") == URL and theirs.pop("store") == str(local)
    assert {**ours, "seconds": 0, "fetched": 0} == {**theirs, "seconds": 0, "fetched": 0}
    key = next(key for key in bucket.names() if key.endswith("val/bee/shard-00001.safetensors"))
    data = bytearray(bucket.read(key))
    data[-1] ^= 1
    proxy.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(data))
    done = run("verify", URL)
    assert done.returncode == 1 and "val/bee/shard-00001.safetensors" in done.stdout + done.stderr

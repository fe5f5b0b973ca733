"""The bits of one number of threads, computed by another; the reference is the same model, run by the test itself."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from embedx.config import ExtractConfig
from embedx.run.prepare import prepare
from embedx.run.same_bits import settle_threads
from tests.distribute.members import contents
from tests.runs import run


@pytest.fixture(autouse=True)
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch_size", [4, 16])
@pytest.mark.parametrize(("own", "reference"), [(1, 2), (2, 1)])
def test_a_model_computes_the_bits_of_the_other_number_of_threads_and_takes_it_only_where_it_must(
    own: int, reference: int, batch_size: int, tmp_path: Path
) -> None:
    """torch has another kernel for 1x1 convolutions of fewer than 16 images where it has one thread only."""
    config = ExtractConfig(
        backbone="squeezenet1_1", weights="random", out=tmp_path, batch_size=batch_size, image_size=64, runtime="eager"
    )
    job = prepare(config)
    images = job.decoder.empty(batch_size).random_(0, 256)
    said = Console(file=StringIO())
    rows = {}
    for threads in (reference, own):  # ends with the own number
        torch.set_num_threads(threads)
        model = job.build_model(said)
        with torch.inference_mode():
            rows[threads] = model(images)["embeddings"].clone()
    differ = not torch.equal(rows[own], rows[reference])
    settled = settle_threads(job, model, reference, said)
    assert torch.get_num_threads() == (reference if differ else own)
    with torch.inference_mode():
        assert torch.equal(settled(images)["embeddings"], rows[reference])
    text = f"computing with {reference} thread"
    assert (text in said.file.getvalue()) == differ  # type: ignore[attr-defined]


def test_without_another_number_nothing_is_computed(tmp_path: Path) -> None:
    job = prepare(ExtractConfig(backbone="squeezenet1_1", weights="random", out=tmp_path))
    model = job.build_model(Console(quiet=True))
    for reference in (None, torch.get_num_threads()):
        assert settle_threads(job, model, reference, Console(quiet=True)) is model


@pytest.mark.soak
def test_members_of_one_thread_and_a_run_that_goes_on_with_one_give_the_bytes_of_two(tmp_path: Path) -> None:
    command = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--image-size", "64", "-b", "4"]
    command += ["--shard-size", "65536", "--runtime", "eager"]
    alone, members = tmp_path / "alone", tmp_path / "members"
    for out, options in ((alone, ["--threads", "2"]), (members, ["--threads", "2", "--devices", "cpu,cpu"])):
        done = run(*command, "--out", out, *options)
        assert done.returncode == 0, done.stderr
    assert contents(members) == contents(alone)
    expected = contents(alone)
    next(alone.glob("train/*.safetensors")).unlink()
    done = run(*command, "--out", alone, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert contents(alone) == expected

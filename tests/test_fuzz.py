"""Files that nobody would write, fed to what reads them: a result, or an error that embedx words itself."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import embedx
from embedx import sample
from embedx.data.decoding.images import ImageDecoder, decode
from embedx.data.loading.loaders import SplitLoader
from embedx.data.plan import build_plan
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import Preprocessing
from scripts.fuzz import TARGETS
from tests.folders import folder_source
from tests.runs import SEED, run

PHOTOGRAPH = Path(skimage.__file__).parent / "data/astronaut.png"
PROFILE = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "delete", "splice"]), st.integers(0, 1 << 16), st.integers(0, 1 << 16)
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, edits: list[tuple[str, int, int]], other: bytes) -> bytes:
    """The bytes after some edits; a splice puts in a piece of the other file."""
    result = bytearray(data)
    for kind, place, value in edits:
        at = place % max(1, len(result))
        if kind == "flip" and result:
            result[at] ^= 1 << value % 8
        elif kind == "set" and result:
            result[at] = value % 256
        elif kind == "cut":
            del result[at:]
        elif kind == "delete":
            del result[at : at + value % 32]
        elif kind == "splice":
            result[at : at + value % 8] = other[value % max(1, len(other)) :][: 1 + value % 48]
    return bytes(result)


def feed_damaged(target: str, examples: int) -> int:
    """Feeds so many damaged files to a target; returns how many it were."""
    seeds, feed = TARGETS[target].seeds(), TARGETS[target].feed
    tried = 0

    @settings(PROFILE, max_examples=examples)
    @given(st.sampled_from(sorted(seeds)), st.sampled_from(sorted(seeds)), EDITS)
    def check(name: str, other: str, edits: list[tuple[str, int, int]]) -> None:
        nonlocal tried
        tried += 1
        feed(damaged(seeds[name], edits, seeds[other]), name)

    check()
    return tried


@pytest.mark.parametrize("target", ["decode", "table", "tar", "paths"])
def test_damaged_files_give_a_result_or_a_worded_error(target: str) -> None:
    assert feed_damaged(target, 300) >= 250


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("target", "examples"), [("decode", 6000), ("table", 3000), ("tar", 3000), ("paths", 1000), ("store", 500)]
)
def test_thousands_of_damaged_files_give_a_result_or_a_worded_error(
    target: str, examples: int, record_property: Callable[[str, object], None]
) -> None:
    tried = feed_damaged(target, examples)
    record_property("inputs tried", tried)
    assert tried >= examples * 0.8


@pytest.mark.parametrize("target", ["decode", "table", "tar", "paths"])
def test_random_bytes_give_a_worded_error(target: str) -> None:
    seeds, feed = sorted(TARGETS[target].seeds()), TARGETS[target].feed

    @settings(PROFILE, max_examples=100)
    @given(st.sampled_from(seeds), st.binary(max_size=600))
    def check(name: str, data: bytes) -> None:
        feed(data, name)

    check()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_workers_survive_thousands_of_damaged_images_and_get_to_the_end(tmp_path: Path) -> None:
    """Also where they crash a decoder; each is what it is when it is decoded alone."""
    seeds = TARGETS["decode"].seeds()
    random_edits = random.Random(SEED)
    for number in range(3000):
        name, other = random_edits.choice(sorted(seeds)), random_edits.choice(sorted(seeds))
        kinds = random_edits.choices(["flip", "set", "cut", "delete", "splice"], k=random_edits.randint(1, 6))
        edits = [(kind, random_edits.randrange(1 << 16), random_edits.randrange(1 << 16)) for kind in kinds]
        (tmp_path / f"{number:04}.jpg").write_bytes(damaged(seeds[name], edits, seeds[other]))
    plan = build_plan({"all": folder_source(tmp_path)}, None).splits["all"]
    decoder = ImageDecoder(Preprocessing(36, 32, "bilinear", (0, 0, 0), (1, 1, 1)))
    batches = list(SplitLoader(plan, [range(3000)], decoder, batch_size=50, workers=2, timeout=20))
    reasons = [reason for batch in batches for reason in batch["reasons"]]
    images = torch.cat([batch["images"] for batch in batches])
    assert 500 < sum(reason is not None for reason in reasons) < 3000 == len(reasons)
    for number, (image, reason) in enumerate(zip(images, reasons, strict=True)):
        expected = torch.zeros_like(image)
        if reason is None:
            decoder.decode_into(expected, (tmp_path / f"{number:04}.jpg").read_bytes())
        assert torch.equal(image, expected), number


def cut_at_random(suffix: str) -> dict[int, bytes]:
    """A photograph, cut at a hundred lengths."""
    content = io.BytesIO()
    Image.open(PHOTOGRAPH).convert("RGB").resize((96, 64)).save(content, suffix)
    whole = content.getvalue()
    lengths = random.Random(f"{SEED}{suffix}").sample(range(len(whole)), 100)
    return {length: whole[:length] for length in lengths}


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp"])
def test_an_image_that_is_cut_anywhere_is_rejected_or_has_the_rows_that_are_there(suffix: str) -> None:
    rejected = 0
    for data in cut_at_random(suffix).values():
        try:
            assert decode(data).shape == (3, 64, 96)
        except RejectedInputError as error:
            rejected += 1
            assert str(error)
    assert rejected >= 95


@pytest.mark.soak
def test_a_run_over_images_that_are_cut_has_a_row_or_a_reject_for_each(tmp_path: Path) -> None:
    """A hundred lengths of a JPEG, a PNG and a WebP each; the whole exits with 3."""
    (tmp_path / "images").mkdir()
    for suffix in ("jpeg", "png", "webp"):
        for length, data in cut_at_random(suffix).items():
            (tmp_path / "images" / f"{length:05d}.{suffix}").write_bytes(data)
    arguments = ("--backbone", sample.BACKBONE, "--weights", "sample", "--data", tmp_path / "images")
    done = run("extract", *arguments, "--out", tmp_path / "store")
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    table = embedx.open(tmp_path / "store").index("all")
    assert len(table) == 300 and list(embedx.verify(tmp_path / "store")) == []
    for row in table.to_pylist():
        assert (row["status"] == "ok") == (row["reason"] is None), row
    assert table["reason"].null_count <= 15

"""A store whose inputs are real small JPEG files, with one of every fault that a report finds."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageFilter

from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from tests.store.builders import commit

CLASSES = ("ant", "bee", "cat")
TRAIN, VAL = 60, 30
DARK, BLURRY, TINY, ODD, CHANGED, GONE, NAN, CONSTANT, MISLABELLED, OUTLIER = range(10, 20)
"""The numbers of the rows of train that have a fault."""
REJECTED = 20
"""The number of the input of train that has no row."""
LEAKED = 5
"""The row of val whose bytes are those of the same number in train."""
DIM = 16


def picture(number: int) -> Image.Image:
    generator = np.random.default_rng(number)
    image = Image.fromarray(generator.integers(60, 256, (24, 24, 3), dtype=np.uint8)).resize((240, 240), 0)
    match number:
        case n if n == DARK:
            return image.point(lambda value: value // 12)
        case n if n == BLURRY:
            return image.filter(ImageFilter.GaussianBlur(12))
        case n if n == TINY:
            return image.resize((20, 24))
        case n if n == ODD:
            return image.crop((0, 0, 240, 70))
    return image


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def embeddings() -> torch.Tensor:
    """Three clusters, whose rows are neither duplicates nor far from each other; rows of train, then those of val."""
    generator = torch.Generator().manual_seed(0)
    count = TRAIN + VAL
    rows = 3 * torch.eye(3, DIM)[torch.arange(count) % 3] + 0.5 * torch.randn(count, DIM, generator=generator)
    rows[NAN, 3] = torch.nan
    rows[CONSTANT] = 0
    rows[OUTLIER] = -torch.linspace(1, 2, DIM)
    rows[TRAIN + LEAKED] = rows[LEAKED]
    return rows


def write_picture_store(out: Path) -> Path:
    """Writes the store into `out/store`, and its inputs into `out/images`; returns the store's path."""
    (out / "images").mkdir()
    plan = PlanTerms(None, 32, classes=CLASSES, splits={"train": SplitTerms(TRAIN), "val": SplitTerms(VAL)})
    recipe = StoredRecipe.from_json({"backbone": "two_layers", "dtype": "float32"})
    session = StoreSession.begin(out / "store", Manifest(recipe, plan), "create")
    rows, first = embeddings(), 0
    for split, count in (("train", TRAIN), ("val", VAL)):
        for start in range(0, count, 32):
            numbers = range(start, min(start + 32, count))
            table = pa.table(_columns(out / "images", split, numbers), schema=ROW_SCHEMA)
            table = table.append_column("camera", pa.array([f"camera-{number % 2}" for number in numbers]))
            table = table.append_column("height_m", pa.array([number / 2 for number in numbers]))
            table = table.append_column("species", pa.array(CLASSES).take(table["target"]))
            own = rows[first + start : first + numbers.stop]
            commit(session, UnitBatch(Unit(split, start // 32), {"embeddings": own}, table))
        first += count
    session.finish({"seconds": 1.0})
    session.close()
    (out / "images" / f"train-{CHANGED}.jpg").write_bytes(encoded(picture(999)))
    (out / "images" / f"train-{GONE}.jpg").unlink()
    return out / "store"


def _columns(images: Path, split: str, numbers: range) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [None] * len(numbers) for name in ROW_SCHEMA.names}
    paths = [images / f"{split}-{number}.jpg" for number in numbers]
    for path, number in zip(paths, numbers, strict=True):
        own = number if split == "train" or number == LEAKED else 1000 + number
        path.write_bytes(encoded(picture(own)))
    is_rejected = [split == "train" and number == REJECTED for number in numbers]
    wrong = [split == "train" and number == MISLABELLED for number in numbers]
    return columns | {
        "split": [split] * len(numbers),
        "index": list(numbers),
        "key": [f"{split}/{number}" for number in numbers],
        "path": list(map(str, paths)),
        "target": [(number + own) % 3 for number, own in zip(numbers, wrong, strict=True)],
        "status": ["rejected" if own else "ok" for own in is_rejected],
        "reason": ["not an image" if own else None for own in is_rejected],
        "bytes": [path.stat().st_size for path in paths],
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths],
    }

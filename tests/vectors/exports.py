"""A small store with odd keys and columns, its exports, and how faiss reads in a process without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from tests.store.builders import commit

DIM = 7
COUNTS = {"train": 90, "val": 21}
REJECTED = 4
"""The number of a row of each split that has no vector."""
ODD_KEYS = (
    "photos/cat.1/im.age.jpg",
    "line\nend",
    "tab\tand\\backslash",
    "comma, \"quotes\" and 'more'",
    "rejected",
    "é/ü/日本/שלום",
    "../up",
    "/root//twice/",
    ".hidden",
    "%41~7",
    " ",
    "\r\n",
    "x" * 300,
    "<img src=x onerror=alert(1)>",
    "NULL",
    "007",
)
SCORES = (0.1, float("nan"), None, 1e300, -0.0)


def key(number: int) -> str:
    return ODD_KEYS[number] if number < len(ODD_KEYS) else f"dir/key-{number}.jpg"


def vectors(split: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(split))
    rows = torch.randn(COUNTS[split], DIM, generator=generator) * torch.logspace(-9, 3, DIM)
    rows[7] = 0
    return rows


def build(
    out: Path, *, dtype: torch.dtype = torch.float32, rows_per_unit: int = 16, finish: bool = True, value: float = 1
) -> Path:
    """Writes the store: val has none of the source's own columns."""
    plan = PlanTerms(None, rows_per_unit, splits={split: SplitTerms(count) for split, count in COUNTS.items()})
    session = StoreSession.begin(out, Manifest(StoredRecipe.from_json({"name": "odd `recipe`"}), plan), "create")
    for split, count in COUNTS.items():
        ok = [number != REJECTED for number in range(count)]
        columns: dict[str, Any] = {name: [None] * count for name in ROW_SCHEMA.names}
        columns |= {"split": [split] * count, "index": range(count), "key": list(map(key, range(count)))}
        columns |= {"status": ["ok" if each else "rejected" for each in ok], "target": [None, 1, 2] * (count // 3)}
        columns |= {"reason": [None if each else "broken" for each in ok]}
        table = pa.table(columns, schema=ROW_SCHEMA)
        if split == "train":
            table = table.append_column("class", pa.array([f'a\t"{number % 3}",\nb' for number in range(count)]))
            table = table.append_column("score", pa.array([SCORES[number % 5] for number in range(count)]))
            table = table.append_column("box", pa.array([[number, 1] for number in range(count)]))
        rows = (vectors(split) * value).to(dtype)
        for start in range(0, count, rows_per_unit):
            part = table.slice(start, rows_per_unit)
            unit = Unit(split, start // rows_per_unit)
            commit(session, UnitBatch(unit, {"embeddings": rows[start : start + rows_per_unit]}, part))
            if not finish and start >= rows_per_unit:
                session.close()
                return out
    session.finish({"seconds": 1.0})
    session.close()
    return out


def expected(split: str | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The vectors of the rows that have one: of a split, or of both."""
    splits = list(COUNTS) if split is None else [split]
    return np.concatenate([np.delete(vectors(each).numpy(), REJECTED, axis=0) for each in splits])


def keys(split: str | None = None) -> list[str]:
    splits = list(COUNTS) if split is None else [split]
    return [key(number) for each in splits for number in range(COUNTS[each]) if number != REJECTED]


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_own_process(program: str, *arguments: object) -> Any:
    """Runs a program in a Python that has not imported torch, and returns the JSON that it prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

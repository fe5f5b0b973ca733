"""A data set of the Hugging Face hub: Parquet files per split, and the card that tells which they are."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from embedx.errors import ConfigError
from embedx.vectors.exporting.formats.base import VECTOR_COLUMN, Block, ExportJob, TableFile, by_split, split_file

_FILE_BYTES = 500 * 1000**2
"""The bytes of vectors in a file, as many as the hub's viewer and its downloads like."""
_SPLIT = re.compile(r"\w+(\.\w+)*")
"""The names of splits that the library `datasets` takes."""


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `README.md` and files such as `data/train-00000-of-00001.parquet`.

    Raises:
        ConfigError: If the library does not take a split's name or a column's type.
    """
    faults = [
        f"--to hf: the library datasets takes no split {split!r}, only letters, digits, _ and dots between them; "
        "choose other splits by --split, or another format"
        for split in job.rows
        if not _SPLIT.fullmatch(split)
    ]
    faults += [
        f"--to hf: the library datasets has no maps, as the column {field.name!r} holds; choose others by --columns"
        for field in job.schema
        if "map<" in str(field.type)
    ]
    ConfigError.check(faults)
    (folder / "data").mkdir()
    digest = hashlib.sha256()
    per_file = max(1, _FILE_BYTES // job.row_bytes)
    for split, own in by_split(blocks):
        count = -(-job.rows[split] // per_file)
        for number, part in itertools.groupby(_cut(own, per_file), key=lambda each: each[0]):
            path = folder / "data" / f"{split_file(split)}-{number:05d}-of-{count:05d}.parquet"
            with TableFile(path, job.with_vectors) as table:
                for _, block in part:
                    table.add(job.table(block))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    (folder / "README.md").write_text(_card(job, digest.hexdigest()), encoding="utf-8")


def _cut(blocks: Iterator[Block], per_file: int) -> Iterator[tuple[int, Block]]:
    """Yields the number of the file of each block, which is cut where a file is full."""
    done = 0
    for block in blocks:
        first = 0
        while first < len(block.vectors):
            rows = min(per_file - done % per_file, len(block.vectors) - first)
            table, vectors = block.table.slice(first, rows), block.vectors[first : first + rows]
            yield done // per_file, Block(block.split, block.start + first, table, vectors)
            first, done = first + rows, done + rows


def _card(job: ExportJob, sha256: str) -> str:
    """Returns the card: its head in YAML, of which JSON is a part, and the recipe.

    The sha256 of the files' own ones is in the head, as `load_dataset` takes two local folders of one name for one data
    set if their heads are equal, and would give the rows that it has in its cache.
    """
    splits = [f"  - split: {json.dumps(split)}\n    path: {json.dumps(_pattern(split))}\n" for split in job.rows]
    counts = [f"- `{split}`: {count:,} rows\n" for split, count in job.rows.items()]
    recipe = json.dumps(job.recipe, indent=2).splitlines()
    lines = [
        f'---\nconfigs:\n- config_name: default\n  description: "{sha256}"\n  data_files:\n',
        *splits,
        "tags:\n- embeddings\n---\n\n# Embeddings\n\n",
        f"Vectors of {job.dim} numbers ({job.dtype.name}) in the column `{VECTOR_COLUMN}`, each beside the key of its "
        "input.\n\n",
        *counts,
        "\n## Recipe\n\nAll that determines the vectors' values:\n\n",
        *(f"    {line}\n" for line in recipe),
        "\nWritten by `embedx export --to hf`.\n",
    ]
    return "".join(lines)


def _pattern(split: str) -> str:
    return f"data/{split_file(split)}-*.parquet"

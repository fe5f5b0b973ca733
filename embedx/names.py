"""The store's reserved names and the names of its tensors, each said once."""

from __future__ import annotations

RESERVED_SPLITS = frozenset({"index", "manifest.json"})
"""Names in a store that no split may take, in any case."""

RESERVED_COLUMNS = frozenset(
    {"split", "index", "key", "path", "offset", "group", "target", "status", "reason"}
    | {"shard", "row", "bytes", "mtime_ns", "sha256"}
)
"""The index tables' own columns, whose names no metadata may have."""

LOCK = ".embedx.lock"
"""A file in every store, from its first moment on."""

EMBEDDINGS = "embeddings"
"""The tensor of the backbone's own output: in outputs, in shards and in files of features."""
INDEX = "index"
"""The tensor [N] int64 of the rows' numbers in the plan, the column of the same, and the folder of the index tables."""
TARGETS = "targets"
"""The tensor [N] int64 of the classes' numbers, -1 where unknown."""
NO_BACKBONE = "none"
"""The value of `--backbone` with which the inputs are features already."""

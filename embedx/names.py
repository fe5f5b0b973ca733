"""The store's reserved names and the names of its tensors, each defined once."""

from __future__ import annotations

RESERVED_SPLITS = frozenset({"index", "manifest.json"})
"""The names that no split may have, in upper or lower case, as the store uses them itself."""

RESERVED_COLUMNS = frozenset(
    {"split", "index", "key", "path", "offset", "group", "target", "status", "reason"}
    | {"shard", "row", "bytes", "mtime_ns", "sha256"}
)
"""The columns of every index table; no metadata column may have one of these names."""

MANIFEST = "manifest.json"
"""The file that describes a store."""
LOCK = ".embedx.lock"
"""The lock file, which is the first file of every store."""

CHECK_TIMES = ".embedx.checked"
"""The file with the times at which units of the store were last read and found whole."""

PREDECESSOR = ".embedx.replaced"
"""The file that marks a store as one that another is about to replace, or has replaced if it stands beside it."""

PROBE = ".embedx.probe"
"""The object by which a run finds out that a bucket's server creates no object a second time."""

GENERATION = ".embedx.generation-"
"""The beginning of the names of the folders in a bucket in which stores that took an older one's place have their
files; the manifest of the whole names the one that counts."""

EMBEDDINGS = "embeddings"
"""The tensor of the backbone's own output: in batches' outputs, in shards and in feature files."""
INDEX = "index"
"""The tensor [N] int64 and the column that hold each row's number in the plan; also the index tables' folder."""
TARGETS = "targets"
"""The tensor [N] int64 of class numbers, -1 where the class is unknown."""
NO_BACKBONE = "none"
"""The value of `--backbone` for inputs that are features already."""

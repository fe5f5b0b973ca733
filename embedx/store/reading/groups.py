"""The groups of a split, as readers name them."""

from __future__ import annotations

import enum
from typing import Final, Literal

from embedx.store.format.shards import ShardEntry


class _NoGroup(enum.Enum):
    """Stands for the rows of a grouped store that have no group, where None stands for all rows."""

    NO_GROUP = "no group"


NO_GROUP: Final = _NoGroup.NO_GROUP

Group = str | Literal[_NoGroup.NO_GROUP] | None


def group_of(shard: ShardEntry) -> Group:
    """Returns the group whose rows a shard has."""
    return NO_GROUP if shard.group is None else shard.group

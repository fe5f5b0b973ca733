"""The parts of a manifest: recipe, plan, environment, settings and totals, each with typed entries.

A part is parsed once, from the JSON object in the file. Entries that this embedx doesn't know, and the order of all
entries, are kept, so that a part that was read is written with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self, get_type_hints

from embedx.store.format.index import UnitEntry
from embedx.store.format.typed_json import typed
from embedx.values import Precision, RuntimeName, StoredDtype


@dataclasses.dataclass(frozen=True, eq=False)
class ManifestPart:
    """A JSON object in the manifest; two parts are equal if their JSON is."""

    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True, repr=False)
    """The JSON object that was read; empty for a part that was made in this process."""

    @classmethod
    def from_json(cls, value: Any, name: str = "it") -> Self:
        """Parses the JSON object of this part, which the ValueError for a faulty one calls `name`."""
        stated = typed(value, dict[str, Any], name)
        hints = get_type_hints(cls)
        entries: dict[str, Any] = {}
        for field in cls._entries():
            if field.name in stated:
                entries[field.name] = typed(stated[field.name], hints[field.name], f"{name}.{field.name}")
            elif field.default is dataclasses.MISSING:
                raise ValueError(f"{name} has no {field.name}")
        return cls(**entries, stated=stated)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object; an entry with its default value is left out unless it stood in the file."""
        values = {field: getattr(self, field.name) for field in self._entries()}
        present = {
            field.name: value for field, value in values.items() if field.name in self.stated or value != field.default
        }
        return {**self.stated, **to_json(present)}

    def replacing(self, **entries: Any) -> Self:
        """Returns the same part with other values of these entries, as JSON."""
        return self.from_json({**self.to_json(), **entries})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_json() == other.to_json()

    @classmethod
    def _entries(cls) -> list[dataclasses.Field[Any]]:
        return [field for field in dataclasses.fields(cls) if field.name != "stated"]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRecipe(ManifestPart):
    """The recipe of a store's embeddings: that of `embedx extract`, or any JSON that the user of a writer gave.

    An entry is None if the recipe lacks it, or has a value of another type there.
    """

    batch_size: int | None = None
    runtime: RuntimeName | None = None
    device: str | None = None
    precision: Precision | None = None
    dtype: StoredDtype | None = None
    weights: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, value: Any, name: str = "it") -> Self:
        """Parses the recipe; any JSON object is one."""
        stated = typed(value, dict[str, Any], name)
        known: dict[str, Any] = {}
        for entry, kind in get_type_hints(cls).items():
            with contextlib.suppress(KeyError, ValueError):
                known[entry] = typed(stated[entry], kind)
        return cls(**{**known, "stated": stated})

    @property
    def weights_sha256(self) -> str | None:
        """The sha256 of the file of weights; None also for weights that came from no file."""
        return (self.weights or {}).get("sha256")


@dataclasses.dataclass(frozen=True, eq=False)
class SplitTerms(ManifestPart):
    """The inputs of one split, as a plan states them."""

    inputs: int
    names_sha256: str | None = None
    """The sha256 of the keys, groups and targets in plan order; None where a writer did not know its inputs before."""
    sizes_and_times_sha256: str | None = None
    """The sha256 of the sizes and modification times in plan order; None as above."""
    places_sha256: str | None = None
    """The sha256 of the paths and offsets in plan order; None where the index tables may have others, and as above."""
    metadata_sha256: str | None = None
    """The sha256 of the source's own columns in plan order; None in stores of an older embedx, and as above."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlanTerms(ManifestPart):
    """The plan as the manifest states it: how the inputs are cut into units, and what identifies them."""

    group_key: str | None
    rows_per_unit: int | None
    """The number of inputs in a unit; None until a writer has seen its first batch."""
    classes: tuple[str, ...] | None = None
    """The names of the classes, in the order of their numbers; None where a writer does not know them."""
    splits: dict[str, SplitTerms] = dataclasses.field(default_factory=dict)
    """The splits by name; none where a writer does not know its inputs before."""

    @classmethod
    def from_json(cls, value: Any, name: str = "it") -> Self:
        """Parses the plan, which must say how its inputs are cut into units."""
        plan = super().from_json(value, name)
        if plan.rows_per_unit == 0 or (plan.rows_per_unit is None and plan.splits):
            raise ValueError(f"its units have {plan.rows_per_unit} rows")
        return plan

    def without_places(self) -> PlanTerms:
        """Returns the same plan without the paths and offsets of its inputs."""
        splits = {name: terms.replacing(places_sha256=None) for name, terms in self.splits.items()}
        return dataclasses.replace(self, splits=splits)

    @property
    def grouped(self) -> bool:
        """Tells whether each group has shards of its own."""
        return self.group_key is not None


@dataclasses.dataclass(frozen=True, eq=False)
class Environment(ManifestPart):
    """The versions and the hardware with which a store was written."""

    @property
    def packages(self) -> dict[str, str]:
        """The version of each package, by name."""
        of_the_machine = {"python", "device", "cores", "threads"}
        return {name: value for name, value in self.stated.items() if name not in of_the_machine}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSettings(ManifestPart):
    """The settings of `embedx extract` with which a store was begun; empty where a writer was used by itself."""

    target_column: str | None = None
    """The column that `--target-column` named."""
    working_directory: str | None = None
    """The folder in which the settings' relative paths begin."""
    allow_nonfinite: bool | None = None
    """True if this or a later run stored rows with NaN or infinity."""


@dataclasses.dataclass(frozen=True, eq=False)
class SplitTotals(ManifestPart):
    """The sums over all units of one split; `bytes` is the size of the shards' files."""

    inputs: int
    rows: int
    rejected: int
    units: int
    shards: int
    bytes: int
    unavailable: int = 0

    @classmethod
    def of(cls, units: Iterable[UnitEntry]) -> Self:
        """Adds up a split's units."""
        units = list(units)
        shards = [shard for unit in units for shard in unit.shards]
        return cls(
            inputs=sum(unit.inputs for unit in units),
            rows=sum(unit.rows for unit in units),
            rejected=sum(unit.rejected for unit in units),
            units=len(units),
            shards=len(shards),
            bytes=sum(shard.bytes for shard in shards),
            unavailable=sum(unit.unavailable for unit in units),
        )


def to_json(value: Any) -> Any:
    """Returns a value with the parts of a manifest in it as plain JSON values."""
    return json.loads(json.dumps(value, default=ManifestPart.to_json))

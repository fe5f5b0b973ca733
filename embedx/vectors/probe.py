"""`embedx.probe(store)`: how well targets can be read from embeddings, learned on one split and tested on another."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc
import torch
from safetensors.torch import save
from torch import Tensor, nn

from embedx.callbacks.evaluator import Evaluator
from embedx.engine.loop import run_test
from embedx.errors import ConfigError, output_error
from embedx.heartbeat import SILENT, Heartbeat
from embedx.recipe import fingerprint
from embedx.store.format.atomic import make_folder, write_atomic
from embedx.store.format.index import OK
from embedx.store.format.shards import HEADER_KEY
from embedx.store.reading.reader import Store
from embedx.store.writing.units import UNKNOWN_TARGET
from embedx.vectors.linear import STRENGTHS, LinearFit, best_strength, choose_held_out, fit_linear
from embedx.vectors.linear_head import EMBEDDINGS_INPUT, LinearHead
from embedx.vectors.neighbours import BATCH_ROWS, VOTES, NearestNeighbours
from embedx.vectors.probe_config import Method, ProbeConfig
from embedx.vectors.split_rows import Split, SplitRows, batch_rows, class_names, open_split

TOP = 5
HEAD = "head.safetensors"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """How one class fared."""

    name: str
    target: int
    train_rows: int
    rows: int
    """Rows of the class in the test split."""
    correct: int
    """How many of them were predicted to be of it."""
    mistaken_for: str | None
    """The class that most of the others were predicted to be of; None if there are none."""

    @property
    def accuracy(self) -> float | None:
        """The share that was right; None without rows."""
        return self.correct / self.rows if self.rows else None


@dataclasses.dataclass(frozen=True)
class Strength:
    """An L2 strength that was tried, and how its head did on the rows that were held out."""

    l2: float
    loss: float
    top1: float


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a probe came to."""

    store: Path
    fingerprint: str
    """Of the store's recipe."""
    method: Method
    train: str
    test: str
    train_rows: int
    test_rows: int
    top1: float
    """Share of the test rows whose class was predicted."""
    top5: float | None
    """Share of those whose class is among the five most likely; None of five classes or fewer."""
    mean_class_accuracy: float
    """The mean of the classes' accuracies."""
    average_precision: float | None
    """Of two classes, of the second one; None of more."""
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[C][C] test rows by class and predicted class, in the order of `classes`."""
    settings: dict[str, float | int]
    """Of linear: l2, seed; of knn: k, temperature."""
    epochs: int
    """Passes over the train split by which the head was fitted; 0 for knn."""
    strengths: tuple[Strength, ...]
    """The L2 strengths that were tried; empty where it was given."""
    converged: bool
    """Whether the fit came to its end; so it did for knn."""
    head: Path | None
    """Where the head was saved."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        values: dict[str, Any] = {
            **dataclasses.asdict(self),
            "store": str(self.store),
            "seconds": round(self.seconds, 3),
        }
        for each, of_class in zip(values["classes"], self.classes, strict=True):
            each["accuracy"] = of_class.accuracy
        return values | {"head": None if self.head is None else str(self.head)}


def probe(store: str | Path | Store, config: ProbeConfig | None = None, heartbeat: Heartbeat = SILENT) -> ProbeResult:
    """Learns to tell the targets of one split from its embeddings, and tests that on another split.

    Args:
        store: A store with targets, or its path.
        config: The settings; None for the defaults.
        heartbeat: Where progress goes.

    Returns:
        Accuracies, per class as well, and the confusion matrix. The same store, settings and number of threads give the
        same numbers and the same head, bit for bit.

    Raises:
        ConfigError: If the settings are wrong or do not go with the store, such as a row without target.
        StoreError: If it is not a store, is damaged, or has NaN in a row.
    """
    started = time.perf_counter()
    config = config or ProbeConfig()
    config.validate()
    store = store if isinstance(store, Store) else Store.open(store)
    heartbeat.say("looking through the splits")
    task = _Task.prepare(store, config)
    if config.out is not None:
        try:
            make_folder(config.out.absolute())
        except OSError as error:
            raise output_error(config.out, "can't be made", error, is_store=False) from error
    evaluator = Evaluator(len(task.classes), TOP)
    fits: list[LinearFit] = []
    if config.method == "knn":
        model: nn.Module = task.neighbours()
        evaluator.test_connector = VOTES
    else:
        fits = task.fit_all(heartbeat)
        model = fits[-1].head
    heartbeat.say(f"predicting {config.test}")
    metrics = run_test(model, {config.test: task.features(task.test)}, [evaluator], EMBEDDINGS_INPUT)["metrics"]
    head = None
    if isinstance(model, LinearHead) and config.out is not None:
        head = config.out / HEAD
        _save_head(head, model, {**task.about(), **_settings(config, fits), "classes": task.names})
    return ProbeResult(
        store=store.path,
        fingerprint=store.manifest.fingerprint,
        method=config.method,
        train=config.train,
        test=config.test,
        train_rows=len(task.train),
        test_rows=len(task.test),
        top1=float(metrics["test/top1"]),
        top5=_optional(metrics.get(f"test/top{TOP}")),
        mean_class_accuracy=float(metrics["test/mean_class_accuracy"]),
        average_precision=_optional(metrics.get("test/average_precision")),
        classes=_class_results(task, evaluator.confusion),
        confusion=tuple(tuple(row) for row in evaluator.confusion.tolist()),
        settings=_settings(config, fits),
        epochs=fits[-1].epochs if fits else 0,
        strengths=tuple(Strength(f.l2, f.metrics["test/loss"], f.metrics["test/top1"]) for f in fits[:-1]),
        converged=all(fit.converged for fit in fits[-1:]),
        head=head,
        seconds=time.perf_counter() - started,
    )


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is to be learned and predicted, found to go together."""

    config: ProbeConfig
    train: Split
    test: Split
    classes: Tensor
    """[C] int64."""
    names: list[str]

    @classmethod
    def prepare(cls, store: Store, config: ProbeConfig) -> _Task:
        """Looks through both splits.

        Raises:
            ConfigError: Naming every fault that was found.
        """
        faults: list[str] = []

        def attempt(step: Callable[[], T]) -> T | None:
            try:
                return step()
            except ConfigError as error:
                faults.extend(error.faults)
                return None

        train = attempt(lambda: open_split(store, config.train, config.name))
        test = attempt(lambda: open_split(store, config.test, config.name))
        faults += [fault for split in (train, test) if split is not None and (fault := _target_fault(split))]
        ConfigError.check(faults)
        if train is None or test is None:
            raise RuntimeError("a split could not be opened, and nobody said why")
        classes = train.classes
        names = class_names(train, classes)
        ConfigError.check(_faults(config, train, test, classes, names))
        return cls(config, train, test, classes, names)

    def features(self, split: Split, kept: Tensor | None = None) -> SplitRows:
        """A split's batches, or those of some of its rows."""
        rows = batch_rows(split.dim, len(self.classes))
        if self.config.method == "knn":
            rows = min(rows, BATCH_ROWS)
        return SplitRows(split, self.classes, rows, self.config.memory, kept)

    def neighbours(self) -> NearestNeighbours:
        """What predicts by the nearest rows of the train split."""
        config = self.config
        return NearestNeighbours(self.features(self.train), len(self.classes), config.k, config.temperature)

    def fit_all(self, heartbeat: Heartbeat) -> list[LinearFit]:
        """Fits a head per L2 strength that is tried, and then, last in the list, the one on all rows.

        Strengths are tried from the strongest on, each fit beginning where the one before has ended, until the loss on
        what is held out rises: the weaker ones take longest, and only fit the train split closer still.
        """
        fits: list[LinearFit] = []
        l2 = self.config.l2
        if l2 is None:
            held_out = choose_held_out(self.train.places(self.classes), self.config.seed)
            rest, held_out_rows = self.features(self.train, ~held_out), self.features(self.train, held_out)
            for strength in STRENGTHS:
                start = fits[-1].head if fits else None
                fits.append(self._fit(rest, strength, f"l2-{strength:g}", heartbeat, held_out_rows, start))
                if best_strength(fits) != strength:
                    break
            l2 = best_strength(fits)
        return [*fits, self._fit(self.features(self.train), l2, f"all-l2-{l2:g}", heartbeat)]

    def _fit(
        self,
        features: SplitRows,
        l2: float,
        stage: str,
        heartbeat: Heartbeat,
        held_out: SplitRows | None = None,
        start: LinearHead | None = None,
    ) -> LinearFit:
        config = self.config
        return fit_linear(
            features,
            len(self.classes),
            l2,
            held_out=held_out,
            start=start,
            folder=None if config.out is None else config.out / "checkpoints" / stage,
            about={**self.about(), "seed": config.seed, "stage": stage},
            resume=config.resume,
            heartbeat=heartbeat,
        )

    def about(self) -> dict[str, Any]:
        """What a head is learned from, to the last row."""
        manifest = self.train.store.manifest
        return {
            "store": manifest.fingerprint,
            "index": fingerprint(manifest.index),
            "train": self.train.name,
            "rows": len(self.train),
            "tensor": self.config.name,
            "targets": self.classes.tolist(),
        }


def _target_fault(split: Split) -> str | None:
    """A sentence, if there are rows without a target."""
    unknown = int((split.targets == UNKNOWN_TARGET).sum())
    if not unknown:
        return None
    rows = split.store.index(split.name, ["key", "target", "status"])
    first = rows.filter(pc.and_(pc.equal(rows["status"], OK), pc.is_null(rows["target"])))["key"][0].as_py()
    return (
        f"split {split.name!r} of {split.store.path}: {unknown} of {len(split)} rows have no target, the first is "
        f"{first!r}; extract from folders named by class, or give --target-column"
    )


def _faults(config: ProbeConfig, train: Split, test: Split, classes: Tensor, names: list[str]) -> list[str]:
    """What keeps two splits from being probed, one sentence each."""
    faults = []
    if len(classes) < 2:
        faults.append(f"split {train.name!r} has one class only, {names[0]!r}; there is nothing to tell apart")
    new = test.classes[~torch.isin(test.classes, classes)]
    if len(new) and len(classes) > 1:
        unseen = [
            name for name, target in zip(class_names(test, test.classes), test.classes, strict=True) if target in new
        ]
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        faults.append(
            f"split {test.name!r} has classes that {train.name!r} has not: {', '.join(unseen[:5])}{more}; nobody can "
            "predict them, so leave them out, or embed some of them for training"
        )
    if config.method == "knn" and config.k > len(train):
        faults.append(f"-k is {config.k}, and split {train.name!r} has {len(train)} rows; give fewer neighbours")
    if train.dim != test.dim:
        faults.append(f"{config.name!r} has {train.dim} numbers a row in {train.name!r}, {test.dim} in {test.name!r}")
    return faults


def _settings(config: ProbeConfig, fits: list[LinearFit]) -> dict[str, float | int]:
    if not fits:
        return {"k": config.k, "temperature": config.temperature}
    return {"l2": fits[-1].l2, "seed": config.seed}


def _class_results(task: _Task, confusion: Tensor) -> tuple[ClassResult, ...]:
    train_rows = task.train.places(task.classes).bincount().tolist()
    results = []
    for number, row in enumerate(confusion):
        others = row.clone()
        others[number] = 0
        mistaken_for = task.names[int(others.argmax())] if others.any() else None
        target, rows, correct = int(task.classes[number]), int(row.sum()), int(row[number])
        results.append(ClassResult(task.names[number], target, train_rows[number], rows, correct, mistaken_for))
    return tuple(results)


def _save_head(path: Path, head: LinearHead, about: dict[str, Any]) -> None:
    """Writes `weight` [C, D], `bias` [C], `mean` and `std` [D] float64; as JSON in the header, what they are of."""
    tensors = {name: tensor.contiguous() for name, tensor in head.state_dict().items()}
    write_atomic(path, save(tensors, metadata={HEADER_KEY: json.dumps(about)}))


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)

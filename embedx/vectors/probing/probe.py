"""`embedx.probe(store)`: how well targets can be read from embeddings, learned on one split and tested on another."""

from __future__ import annotations

import json
import time
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from embedx.callbacks.evaluator import Evaluator
from embedx.engine.loop import run_test
from embedx.errors import output_error
from embedx.heartbeat import SILENT, Heartbeat
from embedx.paths import StorePath
from embedx.store.format.atomic import make_folder, write_atomic
from embedx.store.format.shards import HEADER_KEY
from embedx.store.reading.attempts import start_anew
from embedx.store.reading.reader import Store
from embedx.vectors.probing.linear import STRENGTHS, LinearFit, best_strength, check_memory, choose_held_out, fit_linear
from embedx.vectors.probing.linear_head import EMBEDDINGS_INPUT
from embedx.vectors.probing.neighbours import BATCH_ROWS, VOTES, NearestNeighbours
from embedx.vectors.probing.probe_config import ProbeConfig
from embedx.vectors.probing.probe_result import ProbeResult, Strength, class_results
from embedx.vectors.probing.probe_splits import ProbeSplits
from embedx.vectors.probing.split_rows import SplitRows, batch_rows

TOP = 5
HEAD = "head.safetensors"
"""The file of the head: `weight` [C, D], `bias` [C], `mean` and `std` [D] float64, and their origin in the header."""


def probe(
    store: str | StorePath | Store, config: ProbeConfig | None = None, heartbeat: Heartbeat = SILENT
) -> ProbeResult:
    """Learns to predict the targets of one split from its embeddings, and tests that on another split.

    Args:
        store: The store, or its path; its rows must have targets.
        config: The settings; None takes the defaults.
        heartbeat: The receiver of progress.

    Returns:
        Accuracies, overall and per class, and the mistakes. The same store, settings and number of threads give
        the same numbers and the same head, bit for bit.

    Raises:
        ConfigError: If the settings are wrong or don't fit the store, as where a row has no target.
        StoreReplacedError: If another store takes its place; one that is given by its path is opened again first.
        StoreError: If it is not a store, is damaged, or has NaN in a row.
    """
    config = config or ProbeConfig()
    config.validate()
    if isinstance(store, Store):
        return _probe(store, config, heartbeat)
    return start_anew(lambda: _probe(Store.open(store), config, heartbeat))


def _probe(store: Store, config: ProbeConfig, heartbeat: Heartbeat) -> ProbeResult:
    started = time.perf_counter()
    heartbeat.say("looking through the splits")
    splits = ProbeSplits.open(store, config)
    if config.out is not None:
        try:
            make_folder(config.out.absolute())
        except OSError as error:
            raise output_error(config.out, "can't be made", error, is_store=False) from error
    largest = batch_rows(splits.train.dim, len(splits.classes))
    evaluator = Evaluator(len(splits.classes), TOP)
    fits: list[LinearFit] = []
    settings: dict[str, float | int]
    if config.method == "knn":
        largest = min(largest, BATCH_ROWS)
        train = SplitRows(splits.train, splits.classes, largest, config.memory)
        model: nn.Module = NearestNeighbours(train, len(splits.classes), config.k, config.temperature)
        evaluator.test_connector = VOTES
        settings = {"k": config.k, "temperature": config.temperature}
    else:
        check_memory(len(splits.classes), splits.train.dim)
        fits = _fit(splits, config, largest, heartbeat)
        model = fits[-1].head
        settings = {"l2": fits[-1].l2, "seed": config.seed}
    heartbeat.say(f"predicting {config.test}")
    test = SplitRows(splits.test, splits.classes, largest, config.memory)
    tested = run_test(model, {config.test: test}, [evaluator], EMBEDDINGS_INPUT)["metrics"]
    metrics = {name: float(value) for name, value in tested.items()}
    head = None
    if fits and config.out is not None:
        head = config.out / HEAD
        about = {**splits.about(), **settings, "classes": splits.names}
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_atomic(head, save(tensors, metadata={HEADER_KEY: json.dumps(about)}))
    train_rows = splits.train.places(splits.classes).bincount().tolist()
    classes, mistakes = class_results(splits.names, splits.classes.tolist(), train_rows, evaluator.confusion)
    return ProbeResult(
        store=store.path,
        fingerprint=store.manifest.fingerprint,
        method=config.method,
        train=config.train,
        test=config.test,
        train_rows=len(splits.train),
        test_rows=len(splits.test),
        top1=metrics["test/top1"],
        top5=metrics.get(f"test/top{TOP}"),
        mean_class_accuracy=metrics["test/mean_class_accuracy"],
        average_precision=metrics.get("test/average_precision"),
        classes=classes,
        mistakes=mistakes,
        settings=settings,
        epochs=fits[-1].epochs if fits else 0,
        strengths=tuple(Strength(f.l2, f.metrics["test/loss"], f.metrics["test/top1"]) for f in fits[:-1]),
        converged=all(fit.converged for fit in fits[-1:]),
        head=head,
        seconds=time.perf_counter() - started,
    )


def _fit(splits: ProbeSplits, config: ProbeConfig, largest: int, heartbeat: Heartbeat) -> list[LinearFit]:
    """Fits a head per L2 strength that is tried, and then, last in the list, one on all rows by the best strength.

    Goes from the strongest to the weakest, each fit beginning with the weights of the one before, until the loss on the
    rows that are held out rises: weaker strengths take longest, and only fit the train split closer still.
    """

    def rows(kept: Tensor | None = None) -> SplitRows:
        return SplitRows(splits.train, splits.classes, largest, config.memory, kept)

    def fit(train: SplitRows, l2: float, stage: str, **options: Any) -> LinearFit:
        return fit_linear(
            train,
            len(splits.classes),
            l2,
            folder=None if config.out is None else config.out / "checkpoints" / stage,
            about={**splits.about(), "seed": config.seed, "stage": stage},
            resume=config.resume,
            heartbeat=heartbeat,
            **options,
        )

    fits: list[LinearFit] = []
    l2 = config.l2
    if l2 is None:
        held_out = choose_held_out(splits.train.places(splits.classes), config.seed)
        train, test = rows(~held_out), rows(held_out)
        for strength in STRENGTHS:
            start = fits[-1].head if fits else None
            fits.append(fit(train, strength, f"l2-{strength:g}", held_out=test, start=start))
            if best_strength(fits) != strength:
                break
        l2 = best_strength(fits)
    return [*fits, fit(rows(), l2, f"all-l2-{l2:g}")]

"""`embedx.probe`: on the bundled sample, against scikit-learn on its digits, and on what can't be probed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

import embedx
from embedx import Callback, EmbeddingsWriter, ExtractConfig, ProbeConfig, sample
from embedx.engine.loop import run_test
from embedx.errors import CheckpointError, ConfigError, StoreError
from embedx.heartbeat import Heartbeat
from embedx.run.extract import extract
from embedx.store.reading.reader import Store
from embedx.vectors.probing.linear_head import EMBEDDINGS_INPUT
from embedx.vectors.probing.neighbours import NearestNeighbours
from embedx.vectors.probing.split_rows import SplitRows, open_split
from tests.store.builders import write_features

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN_ROWS = 1200


class Interrupting(Heartbeat):
    """Interrupts the run, as Ctrl-C does, before its n-th line."""

    def __init__(self, lines: int = -1) -> None:
        super().__init__(Console(quiet=True))
        self.left = lines
        self.told: list[str] = []

    def tell(self, line: str) -> None:
        self.told.append(line)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pixels of scikit-learn's digits as embeddings, through the writer process."""
    pixels, targets = load_digits(return_X_y=True)

    def loader(rows: slice) -> Iterator[dict[str, Any]]:
        x, y = torch.tensor(pixels[rows], dtype=torch.float32), torch.tensor(targets[rows])
        for start in range(0, len(x), 100):
            index = torch.arange(start, min(start + 100, len(x)))
            yield {
                "images": x[index],
                "targets": y[index],
                "index": index,
                "keys": [str(row) for row in index.tolist()],
            }

    out = tmp_path_factory.mktemp("digits") / "store"
    splits = {"train": loader(slice(None, TRAIN_ROWS)), "val": loader(slice(TRAIN_ROWS, None))}
    run_test(Echo(), splits, [EmbeddingsWriter(out, rows_per_unit=500)])
    return out


class Echo(nn.Module):
    """Returns what it is given."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def arrays(store: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows and targets, of train and of val."""
    train, val = (Store.open(store).load(split) for split in ("train", "val"))
    return train.embeddings, train.targets, val.embeddings, val.targets


@pytest.mark.parametrize("l2", [1e-3, 0.03, 1.0])
def test_accuracy_is_that_of_logistic_regression_at_the_same_strength(digits: Path, l2: float) -> None:
    result = embedx.probe(digits, ProbeConfig(l2=l2))
    x, y, test_x, test_y = arrays(digits)
    mean, std = x.mean(0), np.where(x.std(0) == 0, 1, x.std(0))
    reference = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000).fit((x - mean) / std, y)
    assert result.top1 == pytest.approx(reference.score((test_x - mean) / std, test_y), abs=0.005)
    assert result.converged and result.settings["l2"] == l2 and result.strengths == ()
    assert (result.train_rows, result.test_rows) == (1200, 597)


class Predictions(Callback):
    """Keeps the class with most votes of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: list[int] = []

    def on_test_batch_end(self, trainer_state: Any, model: Any, outputs: Any, *args: Any) -> None:
        self.classes += outputs["votes"].argmax(1).tolist()


@pytest.mark.parametrize(("k", "temperature", "memory"), [(1, 0.07, 10**9), (20, 0.07, 10**9), (50, 0.5, 0)])
def test_every_prediction_is_that_of_brute_force_nearest_neighbours(
    digits: Path, k: int, temperature: float, memory: int
) -> None:
    store = Store.open(digits)
    train, val = (open_split(store, name, "embeddings") for name in ("train", "val"))
    neighbours = SplitRows(train, train.classes, 256, memory)
    kept = Predictions()
    model = NearestNeighbours(neighbours, 10, k, temperature)
    run_test(model, {"val": SplitRows(val, train.classes, 256, memory)}, [kept], EMBEDDINGS_INPUT)
    x, y, test_x, test_y = arrays(digits)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = reference.fit(x, y).predict(test_x)
    assert kept.classes == expected.tolist()
    result = embedx.probe(store, ProbeConfig(method="knn", k=k, temperature=temperature, memory=memory))
    assert result.confusion == confusion_matrix(test_y, expected).tolist()
    assert result.top1 == np.mean(expected == test_y)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled images, embedded by the bundled weights and by random ones."""
    folder = tmp_path_factory.mktemp("sample")
    for weights in ("sample", "random"):
        extract(
            ExtractConfig(backbone=sample.BACKBONE, weights=weights, group_key="class", out=folder / weights, workers=0)
        )
    return {weights: folder / weights for weights in ("sample", "random")}


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_the_sample_is_told_apart_by_good_embeddings_and_not_by_random_ones(
    stores: dict[str, Path], method: Any
) -> None:
    good, bad = (embedx.probe(stores[weights], ProbeConfig(method=method)) for weights in ("sample", "random"))
    assert good.top1 >= 0.95 and good.mean_class_accuracy >= 0.95 and good.top5 is not None and good.top5 >= 0.99
    assert bad.top1 < 0.5
    names = ["checker", "crescent", "cross", "disc", "ring", "star", "stripes", "triangle"]
    assert [each.name for each in good.classes] == names
    assert [each.rows for each in good.classes] == [10] * 8 and good.classes[0].train_rows == 28
    matrix = np.array(good.confusion)
    for number, each in enumerate(good.classes):
        assert each.accuracy == each.correct / 10 == matrix[number, number] / 10
        mistakes: set[str | None] = {names[other] for other in range(8) if other != number and matrix[number, other]}
        assert each.mistaken_for in (mistakes or {None})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that overlap."""
    splits = {"train": two_classes(90), "val": two_classes(40, 1)}
    return write_features(tmp_path_factory.mktemp("small") / "store", splits)


def test_the_strength_is_the_one_with_the_least_loss_on_what_is_held_out(small: Path) -> None:
    result = embedx.probe(small)
    losses = [strength.loss for strength in result.strengths]
    assert [strength.l2 for strength in result.strengths] == [10.0**power for power in range(2, 2 - len(losses), -1)]
    assert losses[-1] > min(losses) == losses[-2] and len(losses) < 9
    assert result.settings["l2"] == result.strengths[-2].l2
    assert embedx.probe(small, ProbeConfig(l2=result.settings["l2"])).confusion == result.confusion
    assert embedx.probe(small, ProbeConfig(seed=1)).strengths != result.strengths


def test_one_seed_gives_one_head_and_streaming_the_same_to_the_bit(digits: Path, tmp_path: Path) -> None:
    for folder, memory in (("kept", 10**9), ("streamed", 0)):
        result = embedx.probe(digits, ProbeConfig(out=tmp_path / folder, memory=memory, l2=0.03))
        assert result.head == tmp_path / folder / "head.safetensors"
    kept, streamed = ((tmp_path / folder / "head.safetensors").read_bytes() for folder in ("kept", "streamed"))
    assert kept == streamed


def test_a_head_states_what_it_is_of_and_predicts_without_embedx(digits: Path, tmp_path: Path) -> None:
    result = embedx.probe(digits, ProbeConfig(l2=0.03, out=tmp_path))
    with safe_open(tmp_path / "head.safetensors", framework="np") as file:
        weight, bias, mean, std = (file.get_tensor(name) for name in ("weight", "bias", "mean", "std"))
        about = json.loads(file.metadata()["embedx"])
    _, _, test_x, test_y = arrays(digits)
    assert np.mean(((test_x - mean) / std @ weight.T + bias).argmax(1) == test_y) == result.top1
    assert about["store"] == result.fingerprint == Store.open(digits).manifest.fingerprint
    assert (about["train"], about["l2"], about["targets"]) == ("train", 0.03, list(range(10)))


@pytest.mark.parametrize("lines", [1, 3])
def test_an_interrupted_probe_goes_on_to_the_same_head(small: Path, tmp_path: Path, lines: int) -> None:
    whole, resumed = Interrupting(), Interrupting()
    expected = embedx.probe(small, ProbeConfig(out=tmp_path / "whole"), whole)
    config = ProbeConfig(out=tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        embedx.probe(small, config, Interrupting(lines))
    assert not (tmp_path / "cut" / "head.safetensors").exists()
    result = embedx.probe(small, dataclasses.replace(config, resume=True), resumed)
    assert expected.head is not None
    assert (tmp_path / "cut" / "head.safetensors").read_bytes() == expected.head.read_bytes()
    assert (result.strengths, result.settings) == (expected.strengths, expected.settings)
    assert resumed.told == whole.told[lines - 1 :]  # fits that had come to their end are not repeated


def test_going_on_with_something_else_is_refused(digits: Path, tmp_path: Path) -> None:
    embedx.probe(digits, ProbeConfig(out=tmp_path, l2=1.0))
    other = write_features(tmp_path / "other", {split: two_classes(20) for split in ("train", "val")})
    with pytest.raises(CheckpointError, match=r"is of another fit: store was '.*', and is '.*'; index was"):
        embedx.probe(other, ProbeConfig(out=tmp_path, l2=1.0, resume=True))


def two_classes(rows: int, seed: int = 0) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    targets = [row % 2 for row in range(rows)]
    return torch.randn(rows, 3, generator=generator) + torch.tensor(targets)[:, None], targets


def test_of_two_classes_there_is_an_average_precision(tmp_path: Path) -> None:
    store = write_features(
        tmp_path / "store", {"train": two_classes(60), "val": two_classes(40, 1)}, names=["no", "yes"]
    )
    for method in ("linear", "knn"):
        result = embedx.probe(store, ProbeConfig(method=method, l2=0.1))
        assert result.top5 is None and result.classes[1].name == "yes"
        if method == "linear":
            x, y, test_x, test_y = arrays(store)
            standard = (test_x - x.mean(0)) / x.std(0)
            # Which penalises w where the multinomial form has weights of w / 2 and -w / 2.
            reference = LogisticRegression(C=2 / (0.1 * 60), tol=1e-8).fit((x - x.mean(0)) / x.std(0), y)
            expected = average_precision_score(test_y, reference.decision_function(standard))
            assert result.average_precision == pytest.approx(expected, abs=1e-6)
        assert result.average_precision is not None and 0.6 < result.average_precision < 1


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
GOOD = (X, [0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("splits", "settings", "said"),
    [
        ({"train": (X, [1] * 6), "val": GOOD}, {}, r"split 'train' has one class only, '1'; there is nothing to tell"),
        ({"train": GOOD, "val": (X, [0, 2, 7, 1, 0, 2])}, {}, r"split 'val' has classes that 'train' has not: 2, 7;"),
        ({"train": GOOD, "val": GOOD}, {"test": "test"}, r"unknown split 'test'; valid: train, val in "),
        ({"train": GOOD, "val": GOOD}, {"train": "a", "test": "b"}, r"unknown split 'a'.*\nunknown split 'b'"),
        ({"train": GOOD, "val": (X, [0, None, 1, None, 0, 1])}, {},
         r"split 'val' of .*: 2 of 6 rows have no target, the first is 'key-1'; run `embedx extract` on folders named "
         r"by class"),
        ({"train": (X, [None] * 6), "val": GOOD}, {}, r"split 'train' of .*: 6 of 6 rows have no target"),
        ({"train": GOOD, "val": GOOD}, {"method": "knn", "k": 7}, r"-k is 7, and split 'train' has 6 rows; give fewer"),
        ({"train": GOOD, "val": (X[:, :2], GOOD[1])}, {}, r"'embeddings' has 3 numbers a row in 'train', 2 in 'val'"),
        ({"train": (X[:2], [0, 1]), "val": GOOD}, {}, r"no class of the train split has a second row to hold out"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_can_not_be_probed_is_one_clear_message(
    tmp_path: Path, splits: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    store = write_features(tmp_path / "store", splits)
    with pytest.raises(ConfigError, match=said) as caught:
        embedx.probe(store, ProbeConfig(**settings))
    assert caught.value.exit_code == 2 and len(caught.value.faults) == 1 + (settings.get("train") == "a")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("method", ["linear", "knn"])
def test_a_row_of_nan_is_one_clear_message(tmp_path: Path, split: str, method: Any) -> None:
    bad = X.clone()
    bad[4, 1] = float("nan")
    store = write_features(tmp_path / "store", {"train": GOOD, "val": GOOD} | {split: (bad, GOOD[1])})
    with pytest.raises(StoreError, match=rf"1 rows of .*{split}/shard-00000\.safetensors have NaN .* 'key-4'"):
        embedx.probe(store, ProbeConfig(method=method))


def test_the_settings_faults_are_reported_together() -> None:
    config = ProbeConfig(train="a", test="a", l2=-1.0, k=0, temperature=0.0, method="knn", resume=True, seed=-1)
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert len(caught.value.faults) == 6
    with pytest.raises(ConfigError, match="--resume goes on from a checkpoint in --out; give --out too"):
        ProbeConfig(resume=True).validate()


def test_a_result_is_plain_json(digits: Path) -> None:
    result = embedx.probe(digits, ProbeConfig(method="knn"))
    assert json.loads(json.dumps(result.to_json()))["classes"][3]["accuracy"] == result.classes[3].accuracy

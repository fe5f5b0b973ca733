"""Embedders in several threads, and in processes that are forked."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import embedx
from embedx import sample
from embedx.models.backbones.base import parameters_on_meta

SETTINGS: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "image_size": 32, "batch_size": 2}
IMAGE = np.random.default_rng(5).integers(0, 255, (40, 40, 3), np.uint8)


def together(*works: Callable[[], Any]) -> list[Any]:
    """Returns what the functions return, each in a thread of its own."""
    found: list[Any] = [None] * len(works)

    def work(number: int) -> None:
        found[number] = works[number]()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stores, each made in a folder of its own."""
    paths = []
    for number in range(2):
        with contextlib.chdir(tmp_path_factory.mktemp(f"made{number}")):
            data = sample.IMAGES / "val" / "star"
            embedx.extract(data, out="store", workers=0, progress=False, weights="sample", **SETTINGS)
            paths.append(Path("store").absolute())
    return paths


def test_embedders_are_made_in_several_threads(stores: list[Path], tmp_path: Path) -> None:
    """Which left torch's modules without weights, and the process in another folder."""
    (expected,) = {embedx.embed(IMAGE, store).tobytes() for store in stores}
    with contextlib.chdir(tmp_path):
        for _ in range(2):
            works = [lambda store=store: embedx.embed(IMAGE, store).tobytes() for store in stores * 2]
            assert together(*works) == [expected] * 4
            assert os.getcwd() == str(tmp_path)
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_stores_are_made_in_several_threads(stores: list[Path], tmp_path: Path) -> None:
    data = sample.IMAGES / "val" / "star"
    options: dict[str, Any] = SETTINGS | {"weights": "sample", "workers": 0, "progress": False}
    works = [lambda name=name: embedx.extract(data, out=tmp_path / name, **options).load("all") for name in "abc"]
    expected = embedx.open(stores[0]).load("all").embeddings
    assert all(np.array_equal(rows.embeddings, expected) for rows in together(*works))


def test_random_weights_are_those_of_their_seed_in_every_thread() -> None:
    settings = SETTINGS | {"weights": "random"}
    expected = embedx.embed(IMAGE, settings).tobytes()
    torch.manual_seed(3)
    following = torch.rand(3).tolist()
    torch.manual_seed(3)
    assert together(*[lambda: embedx.embed(IMAGE, settings).tobytes()] * 3) == [expected] * 3
    assert torch.rand(3).tolist() == following


def test_a_module_that_another_thread_builds_meanwhile_has_its_weights() -> None:
    with parameters_on_meta():
        assert together(lambda: nn.Linear(2, 2).weight.device.type) == ["cpu"]
        with parameters_on_meta():
            assert nn.Linear(2, 2).weight.device.type == "meta"
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_a_forked_process_is_told_that_it_can_t_compute(stores: list[Path]) -> None:
    """It would wait for threads that are not there."""
    with embedx.Embedder(stores[0]) as embed:
        embed(IMAGE)
        context = multiprocessing.get_context("fork")
        inbox = context.SimpleQueue()

        def work() -> None:
            for attempt in (embed, partial(embedx.embed, recipe=stores[1])):
                with pytest.raises(embedx.ConfigError, match="forked from one in which embedx has computed") as raised:
                    attempt(IMAGE)
                inbox.put(str(raised.value))

        process = context.Process(target=work)
        process.start()
        process.join(30)
        exit_code = process.exitcode
        process.kill()
        assert (exit_code, inbox.empty()) == (0, False)


def test_an_embedder_is_neither_copied_nor_pickled(stores: list[Path]) -> None:
    with embedx.Embedder(stores[0]) as embed:
        for act in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="an Embedder can't be copied or pickled; make one in each process"):
                act(embed)

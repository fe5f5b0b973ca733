"""EmbeddingsWriter used as a library: plain dicts in, a store out, whatever happens on the way.

The writer's own process and real files take part throughout. One run costs seconds, so each looks at much.
"""

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import embedx
from embedx.callbacks.writer import EmbeddingsWriter
from embedx.engine import loop
from embedx.engine.callback import Callback
from embedx.engine.connectors import CallbackConnector, DataConnector, data_key, pred_key
from embedx.engine.state import Batch, TrainerState
from embedx.errors import ConfigError, StoreMismatchError, WriterError
from embedx.store.format.layout import index_files
from embedx.store.format.manifest import Manifest
from embedx.store.writing.lock import StoreLock

SIZE = 4
"""Every batch's images are padded to this many."""
STRANGER = "notes/mine.txt"


class Pixels(nn.Module):
    """Takes an image's first pixels as its embedding, and more of them as two tokens of an extra layer."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pixels = images.flatten(1).float()
        return {"embeddings": pixels[:, :3], "blocks.0": pixels[:, :6].reshape(-1, 2, 3)}


class Plain(nn.Module):
    """Returns the embeddings as a bare tensor."""

    def forward(self, images: Tensor) -> Tensor:
        return Pixels()(images)["embeddings"]


class TwoLayers(nn.Module):
    """A small backbone whose result shows in which mode it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.stem(images.float() / 255).flatten(1)))


class Slipping(Pixels):
    """Loses rows from the second batch on."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.calls = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        outputs = super().forward(images)
        return outputs if self.calls == 1 else {name: self.change(value) for name, value in outputs.items()}


def images(rows: Sequence[int]) -> Tensor:
    """[SIZE, 3, 2, 2] uint8, each filled from its row's number; 255 is padding."""
    padded = torch.full((SIZE, 3, 2, 2), 255, dtype=torch.uint8)
    for place, row in enumerate(rows):
        padded[place] = torch.arange(12).reshape(3, 2, 2) + row
    return padded


def expected(rows: Sequence[int]) -> np.ndarray:
    """[n, 3], what Pixels makes of these rows."""
    return np.asarray(rows, np.float32)[:, None] + np.arange(3, dtype=np.float32)


def batch(rows: Sequence[int], **columns: Callable[[int], Any]) -> Batch:
    """A batch of these rows; each of `columns` makes a metadata value of a row's number."""
    return {
        "images": images(rows),
        "index": torch.tensor(rows, dtype=torch.int64),
        "keys": [f"key-{row}" for row in rows],
        "metadata": {name: [value(row) for row in rows] for name, value in columns.items()},
    }


def batches(rows: Sequence[int], **columns: Callable[[int], Any]) -> list[Batch]:
    return [batch(rows[start : start + SIZE], **columns) for start in range(0, len(rows), SIZE)]


def children() -> list[psutil.Process]:
    """This process's spawned children, ended but unreaped ones included."""
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "embedx-writer"]


def assert_let_go(out: Path) -> None:
    """No process is left, and the store is free for the next run."""
    assert children() == []
    StoreLock(out).release()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def without(entry: Batch, name: str) -> Batch:
    return {key: value for key, value in entry.items() if key != name}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two splits, 13 and 4 rows in units of 5, by the dataloaders' own names, with all columns."""
    out = tmp_path_factory.mktemp("written") / "not" / "yet" / "there"
    train = batches(range(13), site=lambda row: "ab"[row % 2], age=lambda row: row / 2, seen=lambda row: row > 6)
    for entry in train:
        rows = entry["index"].tolist()
        entry["paths"] = [f"/data/{row}.jpg" for row in rows]
        entry["targets"] = torch.tensor([-1 if row == 3 else row % 4 for row in rows])
        entry["reasons"] = ["truncated" if row == 6 else None for row in rows]
        entry["bytes"] = [100 + row for row in rows]
        entry["sha256"] = [f"{row:064x}" for row in rows]
    writer = EmbeddingsWriter(out, rows_per_unit=5, recipe={"backbone": "pixels"})
    state = loop.run_test(Pixels(), {"train": train, "val/1": batches(range(4))}, [writer])
    assert state["metrics"] == {"test/rows": 16}
    assert_let_go(out)
    return out


def test_batches_that_straddle_units_are_cut_right_and_read_back_in_order(written: Path) -> None:
    store = embedx.open(written)
    kept = [row for row in range(13) if row != 6]
    assert store.complete
    assert store.recipe == {"backbone": "pixels"}
    assert store.splits == ["train", "val/1"]
    assert list(index_files(written)) == [("train", 0), ("train", 1), ("train", 2), ("val%2F1", 0)]
    assert [unit.inputs for unit in store.units.values()] == [5, 5, 3, 4]
    assert [shard.tensors["index"].tolist() for shard in store.iter_shards("train")] == [
        [0, 1, 2, 3, 4],
        [5, 7, 8, 9],
        [10, 11, 12],
    ]
    loaded = store.load("train")
    assert loaded.keys == [f"key-{row}" for row in kept]
    assert loaded.embeddings.dtype == np.float32
    assert np.array_equal(loaded.embeddings, expected(kept))
    assert loaded.targets.tolist() == [-1 if row == 3 else row % 4 for row in kept]
    assert np.array_equal(store.load("val/1").embeddings, expected(range(4)))
    assert store.load("val/1").targets is None
    assert store.manifest.totals["train"].rejected == 1


def test_extra_layers_are_extra_tensors(written: Path) -> None:
    tokens = embedx.open(written).load("train", name="blocks.0", framework="torch").embeddings
    assert tokens.shape == (12, 2, 3)
    assert tokens[-1].tolist() == [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]
    plain = load_file(written / "train" / "shard-00002.safetensors")
    assert sorted(plain) == ["blocks.0", "embeddings", "index", "targets"]


def test_the_index_table_has_every_input_with_typed_metadata(written: Path) -> None:
    table = embedx.open(written).index("train")
    assert table.column_names == [
        *("split", "index", "key", "path", "offset", "group", "target", "status", "reason"),
        *("shard", "row", "bytes", "mtime_ns", "sha256"),
        *("site", "age", "seen"),
    ]
    assert [table.schema.field(name).type for name in ("site", "age", "seen")] == [
        pa.string(),
        pa.float64(),
        pa.bool_(),
    ]
    assert table["index"].to_pylist() == list(range(13))
    assert table["age"].to_pylist() == [row / 2 for row in range(13)]
    assert table["path"].to_pylist()[12] == "/data/12.jpg"
    assert table["target"].to_pylist()[3] is None
    rejected = table.slice(6, 1).to_pylist()[0]
    assert (rejected["key"], rejected["status"], rejected["reason"]) == ("key-6", "rejected", "truncated")
    assert (rejected["shard"], rejected["row"], rejected["sha256"]) == (None, None, f"{6:064x}")
    assert list(embedx.verify(written)) == []


def test_a_map_names_the_splits_and_the_group_key_the_sub_folders(tmp_path: Path) -> None:
    """Outputs are a bare tensor; stored as bfloat16."""
    out = tmp_path / "out"
    loaders = {
        "x": batches(range(6), slide=lambda row: {1: "../s2", 2: "7"}.get(row, "s1")),
        "y": batches(range(4), slide=lambda row: row // 2),
    }
    writer = EmbeddingsWriter(out, None, {0: "train", 1: "test"}, "slide", dtype=torch.bfloat16)
    loop.run_test(Plain(), loaders, [writer])
    assert_let_go(out)
    store = embedx.open(out)
    assert sorted(store.splits) == ["test", "train"]
    assert sorted(path for path in files(out) if path.endswith("safetensors")) == [
        "test/0/shard-00000.safetensors",
        "test/1/shard-00000.safetensors",
        "train/%2E.%2Fs2/shard-00000.safetensors",
        "train/7/shard-00000.safetensors",
        "train/s1/shard-00000.safetensors",
    ]
    assert store.groups("train") == ["s1", "../s2", "7"]
    own = load_file(out / "train" / "s1" / "shard-00000.safetensors")
    assert own["embeddings"].dtype == torch.bfloat16
    assert own["index"].tolist() == [0, 3, 4, 5]
    loaded = store.load("train")
    assert loaded.groups == ["s1", "../s2", "7", "s1", "s1", "s1"]
    assert np.array_equal(loaded.embeddings, expected(range(6)))
    assert store.load("test", "1").keys == ["key-2", "key-3"]
    assert store.index("test")["slide"].type == pa.int64()
    assert list(embedx.verify(out)) == []


def test_a_backbone_computes_the_embeddings_from_the_batch(tmp_path: Path) -> None:
    """In evaluation and inference mode, of the whole padded batch; stored as float16. Keys come by a connector."""
    torch.manual_seed(0)
    backbone = TwoLayers().train()
    loader = batches(range(6))
    for entry in loader:
        entry["names"] = {"short": entry.pop("keys")}
    connector = CallbackConnector({"keys": data_key("names.short")})
    writer = EmbeddingsWriter(tmp_path / "out", backbone, dtype=torch.float16, test_connector=connector)
    loop.run_test(nn.Identity(), {"all": loader}, [writer], DataConnector({"input": "images"}))
    assert_let_go(tmp_path / "out")
    loaded = embedx.open(tmp_path / "out").load("all")
    with torch.inference_mode():
        reference = torch.cat([backbone.eval()(images(rows))[: len(rows)] for rows in (range(4), range(4, 6))])
    assert loaded.keys == [f"key-{row}" for row in range(6)]
    assert loaded.embeddings.dtype == np.float16
    assert np.array_equal(loaded.embeddings, reference.half().numpy())


def test_a_store_is_refused_without_overwrite_and_replaced_with_it(written: Path, tmp_path: Path) -> None:
    """A stranger's file in the old store lives on in the new one. Predictions lie nested, by a connector."""
    out = tmp_path / "out"
    shutil.copytree(written, out)
    (out / STRANGER).parent.mkdir()
    (out / STRANGER).write_text("precious")
    before = files(out)
    with pytest.raises(StoreMismatchError, match=f"{out} is a store already"):
        loop.run_test(Pixels(), {"all": batches([0])}, [EmbeddingsWriter(out, overwrite=False)])
    assert files(out) == before
    assert_let_go(out)

    class Nested(Pixels):
        def forward(self, images: Tensor) -> Any:
            return {"teacher": super().forward(images)}

    connector = CallbackConnector({"embeddings": pred_key("teacher.embeddings")})
    loop.run_test(Nested(), {"all": batches(range(2))}, [EmbeddingsWriter(out, test_connector=connector)])
    assert_let_go(out)
    store = embedx.open(out)
    assert store.complete
    assert store.splits == ["all"]
    assert np.array_equal(store.load("all").embeddings, expected(range(2)))
    assert (out / STRANGER).read_text() == "precious"
    assert sorted(files(out)) == [
        ".embedx.lock",
        "all/shard-00000.safetensors",
        "index/all-00000.parquet",
        "manifest.json",
        STRANGER,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list(embedx.verify(out)) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_not_a_store_is_refused_and_untouched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / STRANGER).parent.mkdir()
    (tmp_path / STRANGER).write_text("precious")
    with pytest.raises(StoreMismatchError, match="not empty and not a store"):
        loop.run_test(Pixels(), {"all": batches([0])}, [EmbeddingsWriter(tmp_path, overwrite=overwrite)])
    assert files(tmp_path) == {STRANGER: b"precious"}
    assert children() == []


def test_an_interrupted_run_leaves_whole_units_only_and_the_next_one_works(tmp_path: Path) -> None:
    out = tmp_path / "out"
    busy: list[int] = []

    def interrupted() -> Iterator[Batch]:
        yield from batches(range(20))
        wait_for(lambda: len(index_files(out)) == 3)
        busy.append(len(children()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run_test(Pixels(), {"all": interrupted()}, [EmbeddingsWriter(out, rows_per_unit=5)])
    assert busy == [1]
    assert_let_go(out)
    store = embedx.open(out)
    assert not store.complete
    assert [unit.inputs for unit in store.units.values()] == [5, 5, 5]
    assert np.array_equal(store.load("all").embeddings, expected(range(15)))

    loop.run_test(Pixels(), {"all": batches(range(7))}, [EmbeddingsWriter(out, rows_per_unit=5)])
    assert_let_go(out)
    assert embedx.open(out).complete
    assert np.array_equal(embedx.open(out).load("all").embeddings, expected(range(7)))
    assert list(embedx.verify(out)) == []


def test_an_error_in_the_writer_process_ends_the_run(tmp_path: Path) -> None:
    """A column's type changes within a unit, which only the writer process can see; the dataloader has no end."""
    endless = (batch([row], age=str if row % 2 else int) for row in itertools.count())
    with pytest.raises(WriterError, match="Field age has incompatible types: int64 vs string"):
        loop.run_test(Pixels(), {"all": endless}, [EmbeddingsWriter(tmp_path / "out", rows_per_unit=4)])
    assert_let_go(tmp_path / "out")
    assert embedx.open(tmp_path / "out").units == {}
    assert not embedx.open(tmp_path / "out").complete


@pytest.mark.parametrize(
    ("loaders", "settings", "model", "said"),
    [
        (
            {"a": batches([0]), "b": batches([0])},
            {"dataloader_idx_map": {0: "train"}},
            Pixels(),
            r"dataloader 1 has no split name; dataloader_idx_map names \[0\]",
        ),
        (
            {"Val": batches([0]), "val": batches([0])},
            {},
            Pixels(),
            "two dataloaders have the split name Val and val",
        ),
        (
            {"a": batches([0], site=str, age=int)},
            {"group_key": "slide"},
            Pixels(),
            "the group key 'slide' is not in the batch's metadata, which has site, age",
        ),
        (
            {"a": [without(batch([0]), "metadata")]},
            {"group_key": "slide"},
            Pixels(),
            "the group key 'slide' is not in the batch's metadata, which has nothing",
        ),
        (
            {"a": [batch([0, 2, 1])]},
            {},
            Pixels(),
            r"split 'a': the batch's index does not rise \(after -1 came \[0, 2, 1\]\).*without shuffling",
        ),
        (
            {"a": [batch([0, 1]), batch([1, 2])]},
            {},
            Pixels(),
            r"the batch's index does not rise \(after 1 came \[1, 2\]\)",
        ),
        (
            {"a": batches(range(8))},
            {},
            Slipping(lambda value: value[:3]),
            "the output 'embeddings' has 3 rows for 4 inputs",
        ),
        ({"a": [without(batch([0]), "keys")]}, {}, Pixels(), "the batch has no keys; it has images, index, metadata"),
        ({"a": [without(batch([0]), "index")]}, {}, Pixels(), "the batch has no index; it has images, keys, metadata"),
        ({"Index": batches([0])}, {}, Pixels(), "a split can't be named 'Index'"),
        ({"a": batches([0], shard=str, key=str)}, {}, Pixels(), "metadata can't be named key, shard"),
        (
            {"a": batches([0])},
            {"test_connector": CallbackConnector({"embeddings": pred_key("cls")})},
            Pixels(),
            "the prediction has no key 'cls'; it has embeddings, blocks.0",
        ),
    ],
    ids=[
        "index-not-in-the-map",
        "splits-that-differ-in-case",
        "group-key-not-in-the-metadata",
        "group-key-without-metadata",
        "order-within-a-batch",
        "order-across-batches",
        "rows-lost",
        "no-keys",
        "no-index",
        "reserved-split",
        "reserved-metadata",
        "connector",
    ],
)
def test_a_batch_that_does_not_fit_is_a_clear_error_and_nothing_is_committed(
    loaders: dict[str, list[Batch]], settings: dict[str, Any], model: nn.Module, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        loop.run_test(model, loaders, [EmbeddingsWriter(tmp_path / "out", **settings)])
    assert_let_go(tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == [".embedx.lock", "manifest.json"]
    assert not embedx.open(tmp_path / "out").complete


def test_units_are_sized_by_the_first_batch_s_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 KiB a row: ten rows would be a shard of 128 KiB; of whole batches of four, it is eight."""
    monkeypatch.setattr("embedx.callbacks.writer._SHARD_SIZE", 128 * 1024)

    class Wide(Pixels):
        def forward(self, images: Tensor) -> Any:
            return torch.ones(len(images), 3 * 1024)

    loop.run_test(Wide(), {"all": batches(range(12))}, [EmbeddingsWriter(tmp_path / "out")])
    store = embedx.open(tmp_path / "out")
    assert store.manifest.plan.rows_per_unit == 8
    assert [unit.inputs for unit in store.units.values()] == [8, 4]


def test_outputs_without_embeddings_are_a_clear_error(tmp_path: Path) -> None:
    class Logits(Pixels):
        def forward(self, images: Tensor) -> Any:
            return {"logits": images}

    with pytest.raises(ConfigError, match="the outputs have no 'embeddings', but logits; give a test_connector"):
        loop.run_test(Logits(), {"all": batches([0])}, [EmbeddingsWriter(tmp_path / "out")])
    assert_let_go(tmp_path / "out")


def test_another_callbacks_setup_that_raises_leaves_no_process(tmp_path: Path) -> None:
    class Late(Callback):
        def setup(self) -> None:
            raise OSError("too late")

    with pytest.raises(OSError, match="too late"):
        loop.run_test(Pixels(), {"all": []}, [EmbeddingsWriter(tmp_path / "out"), Late()])
    assert_let_go(tmp_path / "out")


def test_without_setup_the_hooks_say_so(tmp_path: Path) -> None:
    writer = EmbeddingsWriter(tmp_path / "out")
    state: TrainerState = loop.run_test(Pixels(), {"all": []}, [])
    with pytest.raises(RuntimeError, match=r"setup\(\) has not been called"):
        writer.on_test_batch_end(state, Pixels(), Pixels()(images([0]))["embeddings"][:1], batch([0]), 0, 0)
    with pytest.raises(RuntimeError, match=r"setup\(\) has not been called"):
        writer.on_test_epoch_end(state, Pixels())
    writer.on_exception(state, ValueError())
    writer.teardown()
    assert not (tmp_path / "out").exists()


def test_a_model_may_reuse_the_buffer_it_returns(tmp_path: Path) -> None:
    class Reusing(Plain):
        buffer = torch.zeros(SIZE, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.buffer.copy_(super().forward(images))

    loop.run_test(Reusing(), {"all": batches(range(12))}, [EmbeddingsWriter(tmp_path / "out")])
    assert np.array_equal(embedx.open(tmp_path / "out").load("all").embeddings, expected(range(12)))


def test_dataloaders_of_one_split_with_another_between_them_lose_no_rows(tmp_path: Path) -> None:
    loaders = {"x": batches(range(4)), "y": batches(range(4)), "z": batches(range(4, 8))}
    writer = EmbeddingsWriter(tmp_path / "out", dataloader_idx_map={0: "a", 1: "b", 2: "a"})
    try:
        loop.run_test(Pixels(), loaders, [writer])
    except ConfigError:
        return
    assert embedx.open(tmp_path / "out").load("a").keys == [f"key-{row}" for row in range(8)]


def test_units_of_an_interrupted_overwrite_are_not_in_the_next_store(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(written, out)
    shutil.copytree(written, tmp_path / ".out.embedx-new")
    begun = tmp_path / ".out.embedx-new"
    dataclasses.replace(Manifest.read(begun), complete=False).write(begun)
    writer = EmbeddingsWriter(out, rows_per_unit=5, recipe={"backbone": "pixels"})
    loop.run_test(Pixels(), {"train": batches(range(2))}, [writer])
    assert embedx.open(out).load("train").keys == ["key-0", "key-1"]


def test_one_writer_can_be_used_for_a_second_run(tmp_path: Path) -> None:
    writer = EmbeddingsWriter(tmp_path / "out", dataloader_idx_map={0: "all"})
    with pytest.raises(ConfigError, match="dataloader 1"):
        loop.run_test(Pixels(), {"x": batches([0]), "y": batches([0])}, [writer])
    loop.run_test(Pixels(), {"x": batches([0])}, [writer])


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (
            [torch.ones(4, 3, dtype=torch.float16), torch.full((4, 3), 1e6)],
            r"'float32 \[N, 3\]'}, but the first batch's {'embeddings': 'float16 \[N, 3\]'}",
        ),
        ([torch.ones(4, 3), torch.ones(4, 5)], r"'float32 \[N, 5\]'}, but the first batch's"),
        ([torch.ones(4)], r"the embeddings have shape \[4\]; give \[n, D\]"),
        ([torch.ones(4, 0)], r"has shape \[4, 0\]: there is nothing in its rows"),
    ],
    ids=["another type", "another width", "no vectors", "empty vectors"],
)
def test_outputs_of_changing_or_no_form_are_a_clear_error(outputs: list[Tensor], said: str, tmp_path: Path) -> None:
    """Across units too, each of which would be whole by itself."""

    class Varying(Pixels):
        def forward(self, images: Tensor) -> Any:
            return outputs.pop(0)

    with pytest.raises(ConfigError, match=said):
        loop.run_test(Varying(), {"all": batches(range(8))}, [EmbeddingsWriter(tmp_path / "out", rows_per_unit=4)])
    assert_let_go(tmp_path / "out")


def test_numbers_that_are_whole_keep_their_type_and_scalars_are_layers_too(tmp_path: Path) -> None:
    class Counting(Pixels):
        def forward(self, images: Tensor) -> Any:
            numbers = torch.arange(len(images)) + 100_001
            return {"embeddings": images.flatten(1)[:, :3].double(), "number": numbers, "score": numbers * 0.5}

    writer = EmbeddingsWriter(tmp_path / "out", dtype=torch.float16)
    loop.run_test(Counting(), {"all": batches(range(4))}, [writer])
    store = embedx.open(tmp_path / "out")
    assert store.load("all").embeddings.dtype == np.float16
    assert store.load("all", name="number").embeddings.tolist() == [100_001, 100_002, 100_003, 100_004]
    assert store.load("all", name="score").embeddings.tolist() == [50_016] * 4  # in steps of 32
    assert [*embedx.verify(tmp_path / "out")] == []


@pytest.mark.parametrize("rows", [0, -4])
def test_units_have_at_least_one_row(rows: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"rows_per_unit is {rows}; give a whole number of at least 1"):
        EmbeddingsWriter(tmp_path / "out", rows_per_unit=rows)


@pytest.mark.parametrize("name", ["index", "targets"])
def test_a_layer_named_like_a_tensor_of_the_store_is_refused(name: str, tmp_path: Path) -> None:
    class Clashing(Pixels):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images) | {name: torch.ones(SIZE, 2)}

    class Stop(Callback):
        def on_test_batch_end(self, *args: Any) -> None:
            raise InterruptedError("the batch was taken")

    with pytest.raises(ConfigError, match=name):
        loop.run_test(Clashing(), {"all": batches([0])}, [EmbeddingsWriter(tmp_path / "out"), Stop()])


def test_the_backbone_gets_its_mode_back(tmp_path: Path) -> None:
    backbone = TwoLayers().train()
    with pytest.raises(ConfigError):
        loop.run_test(Pixels(), {"all": batches([0])}, [EmbeddingsWriter(tmp_path / "out", backbone, {})])
    assert backbone.training

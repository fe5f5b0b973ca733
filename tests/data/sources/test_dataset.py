"""torchvision's datasets; the reference for embeddings is the folder of the same images."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

import embedx
from embedx import ExtractConfig, sample
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources import parse_data
from embedx.data.sources.base import Source
from embedx.data.sources.dataset import DatasetReader, items_of
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.store.reading.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of three classes, one of the six in grey."""
    root = tmp_path_factory.mktemp("my images")
    for folder in sorted((sample.IMAGES / "val").iterdir())[:3]:
        (root / folder.name).mkdir()
        for image in sorted(folder.glob("*.png"))[:1] + sorted(folder.glob("*.webp"))[:1]:
            shutil.copy(image, root / folder.name)
    first = next(root.rglob("*.png"))
    Image.open(first).convert("L").save(first)
    return root


def source(location: str) -> Source:
    (only,) = parse_data([location]).values()
    return only


def fault(location: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_data([location])
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_folder_s_embeddings_targets_and_classes(
    tmp_path: Path, images: Path, workers: int
) -> None:
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "batch_size": 4, "group_key": "class"}
    extract(ExtractConfig(**settings, workers=0, out=tmp_path / "folder", data=(str(images),)))
    data = (f"test=torchvision:ImageFolder?root={str(images).replace(' ', '%20')}",)
    summary = extract(ExtractConfig(**settings, workers=workers, out=tmp_path / "store", data=data))
    assert summary.rejected == 0 and list(verify(tmp_path / "store")) == []
    expected, rows = embedx.open(tmp_path / "folder").load("all"), embedx.open(tmp_path / "store").load("test")
    assert np.array_equal(rows.embeddings, expected.embeddings)
    assert rows.targets.tolist() == expected.targets.tolist() and rows.groups == expected.groups
    assert rows.keys == [f"{number:08d}" for number in range(6)]
    paths = {row["path"] for row in embedx.open(tmp_path / "store").index().to_pylist()}
    assert len(paths) == 1 and paths.pop().startswith("torchvision:ImageFolder?root=")


def test_a_dataset_that_is_held_in_memory_is_read_by_its_own_targets(tmp_path: Path) -> None:
    """CIFAR10 checks the md5 of its files, so the test makes torchvision's class for a moment believe them."""
    location = f"torchvision:CIFAR10?root={tmp_path}&train=false"
    message = fault(location)
    assert (
        "Dataset not found or corrupted" in message and "add download=true or correct its arguments (root, " in message
    )
    assert "add download=true" not in fault(f"torchvision:ImageFolder?root={tmp_path}/nowhere")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [3, 0, 9, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: True)
        only = source(location)
        content = only.scan()
        assert content["target"].to_pylist() == [3, 0, 9, 3] and content["class"].to_pylist() == ["d", "a", "j", "d"]
        data = pickle.loads(pickle.dumps(only.reader)).read(content["path"][0].as_py(), 2, None)
    assert data.startswith(b"P6")
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))


def test_targets_that_no_attribute_has_are_read_from_the_items() -> None:
    only = source("torchvision:FakeData?size=5&random_offset=7&num_classes=3")
    content = only.scan()
    reference = datasets.FakeData(size=5, random_offset=7, num_classes=3)
    assert content["target"].to_pylist() == [reference[number][1] for number in range(5)]
    assert only.metadata == () and content["key"].to_pylist()[4] == "00000004"
    data = only.reader.read(b"", 4, None)
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), np.array(reference[4][0]))


class Items:
    """Stands for a dataset."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        if isinstance(self.items[number], Exception):
            raise self.items[number]
        return self.items[number]


@pytest.mark.parametrize(
    ("items", "attributes", "targets"),
    [
        ([None] * 2, {"labels": np.array([1, -1])}, [1, None]),
        ([None] * 2, {"targets": ["a", "b"], "y": [0, 1]}, [0, 1]),
        ([None] * 2, {"_samples": [("x.png", 4), ("y.png", 2)]}, [4, 2]),
        ([None] * 2, {"targets": [1, 2, 3]}, None),
        ([None] * 2, {"targets": [0.5, 1]}, None),
        ([("image", 1), OSError(), ("image", 0)], {}, [1, None, 0]),
        ([("image", {"boxes": 1})] * 2, {}, None),
    ],
)
def test_only_one_whole_number_per_item_is_a_target(
    items: list[Any], attributes: dict[str, Any], targets: list[int | None] | None
) -> None:
    source = items_of(Items(items, **attributes), DatasetReader("ImageFolder", {}))
    assert source.scan()["target"].to_pylist() == (targets or [None] * len(items))


def test_items_that_are_no_images_or_can_t_be_read_are_rejected() -> None:
    palette = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    reader = DatasetReader("ImageFolder", {})
    reader._dataset = Items([("text", 1), OSError("gone"), (palette, 0), palette.convert("CMYK")])
    for number, reason in (
        (0, "no image, but of type str"),
        (1, "OSError: gone"),
        (3, "OSError: cannot write mode CMYK"),
    ):
        with pytest.raises(RejectedInputError, match=reason):
            reader.read(b"", number, None)
    assert np.array_equal(np.array(Image.open(io.BytesIO(reader.read(b"", 2, None)))), np.array(palette))


def test_a_worker_never_downloads() -> None:
    reader = DatasetReader("CIFAR10", {"root": "data/my x", "train": False, "download": True})
    assert reader.arguments == {"root": "data/my x", "train": False}
    assert str(reader) == "torchvision:CIFAR10?root=data/my%20x&train=False"
    with pytest.raises(RejectedInputError, match="Dataset not found"):
        reader.read(b"", 0, None)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("torchvision:CIFAR11?root=x", "unknown dataset of torchvision 'CIFAR11'; did you mean CIFAR10?"),
        ("torchvision:VisionDataset?root=x", "unknown dataset of torchvision 'VisionDataset'"),
        ("torchvision:CIFAR10", "root is missing; CIFAR10 takes root, train, download"),
        ("torchvision:CIFAR10?root=x&trian=1", "unknown argument 'trian'; CIFAR10 takes root, train, download"),
        ("torchvision:CIFAR10?root=x&transform=1", "unknown argument 'transform'"),
        ("torchvision:EMNIST?root=x", "split is missing; EMNIST takes"),
        ("torchvision:STL10?root=x&split=tset", "Unknown value 'tset' for argument split"),
    ],
)
def test_bad_names_and_arguments_are_faults(location: str, message: str) -> None:
    assert message in fault(location)


def test_text_stays_text_where_the_dataset_takes_text(tmp_path: Path) -> None:
    assert "Dataset not found" in fault(f"torchvision:VOCDetection?root={tmp_path}&year=2012&image_set=val")
    assert "Unknown value '1999' for argument year" in fault(f"torchvision:VOCDetection?root={tmp_path}&year=1999")


def test_an_empty_dataset_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="the dataset has no items"):
        source("torchvision:FakeData?size=0").scan()

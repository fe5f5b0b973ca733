"""Folders as people have them: which are splits, and what is left out; torchvision and os.walk say what is right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.data.sources.structure import role_of
from embedx.errors import ConfigError
from embedx.names import LOCK
from tests.folders import touch


def listed(root: Path, **options: Any) -> Plan:
    return build_plan(parse_data([str(root)], SourceOptions(**options)), None)


def notice(root: Path, **options: Any) -> str:
    """What is said of the source, without its name."""
    said = listed(root, **options).notices
    return "".join(said).removeprefix(f"--data {root}: ")


def classes_by_torchvision(folder: Path) -> dict[str, str]:
    """Each image's class by its path."""
    found = ImageFolder(str(folder))
    return {path: found.classes[number] for path, number in found.samples}


@pytest.mark.parametrize(
    "splits",
    [
        ("Train", "Val"),
        ("train", "test"),
        ("TRAIN", "VALID", "TEST"),
        ("train2017", "val2017"),
        ("train2014", "val2014", "test2015", "unlabeled2017"),
        ("training", "testing"),
        ("Training", "Validation"),
        ("train", "dev", "test"),
        ("train", "eval"),
        ("training_set", "test_set"),
        ("trainval", "test-dev"),
        ("seg_train", "seg_test"),
        ("bounding_box_train", "bounding_box_test"),
        ("train_images", "test_images"),
        ("train", "valid", "validation", "val"),
        ("Train",),
        ("mnist_train", "mnist_test"),
        ("cifar10-train", "cifar10-val"),
        ("01_train", "02_val", "03_test"),
        ("train", "public_test", "private_test"),
        ("trainA", "trainB", "testA", "testB"),
    ],
)
def test_the_field_s_names_of_splits_are_read(tmp_path: Path, splits: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"{split}/{name}/0.png" for split in splits for name in ("cat", "dog")))
    plan = listed(tmp_path)
    assert list(plan.splits) == sorted(splits)
    assert plan.classes == ["cat", "dog"]
    for split in splits:
        right = classes_by_torchvision(tmp_path / split)
        table = plan.splits[split].table
        assert {os.fsdecode(row["path"]): row["class"] for row in table.to_pylist()} == right
        assert table["key"].to_pylist() == ["cat/0.png", "dog/0.png"]
    plain = {"train", "val", "valid", "validation", "test"}.issuperset(splits)
    assert bool(plan.notices) is not plain
    assert plain or all(split in plan.notices[0] for split in splits)


@pytest.mark.parametrize(
    "name",
    ["trains", "contest", "bullet_train", "steam-train", "validate", "latest", "tests", "testament", "training day",
     "trainee", "cat", "2017", "device", "train12345", "evals", "my_train_cat", "trainset_cat"],
)  # fmt: skip
def test_other_names_are_no_splits(name: str) -> None:
    assert role_of(name) is None


@pytest.mark.parametrize(
    "guest",
    ["__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "#recycle", ".git", ".DS_Store",
     ".ipynb_checkpoints"],
)  # fmt: skip
@pytest.mark.parametrize("splits", [("Train", "Val"), ("train",), ("cat", "dog")])
def test_what_systems_put_beside_folders_is_left_out_wherever_it_is(
    tmp_path: Path, guest: str, splits: tuple[str, ...]
) -> None:
    touch(tmp_path, *(f"{split}/x/0.png" for split in splits))
    before = listed(tmp_path)
    touch(tmp_path, f"{guest}/0.png", f"{splits[0]}/{guest}/1.png", f"{splits[0]}/x/{guest}/2.png", "Thumbs.db",
          f"{splits[0]}/x/desktop.ini", f"{splits[0]}/x/._0.png", ".DS_Store/x")  # fmt: skip
    after = listed(tmp_path)
    assert {name: split.table for name, split in after.splits.items()} == {
        name: split.table for name, split in before.splits.items()
    }
    said = "".join(after.notices)
    assert said.endswith(f"left out: the folder {guest}") or guest.startswith(".")


@pytest.mark.parametrize("guest", ["labels", "annotations", "Annotations", "masks", "ImageSets"])
def test_annotations_are_left_out_beside_splits_and_are_a_class_elsewhere(tmp_path: Path, guest: str) -> None:
    touch(tmp_path, "Train/cat/0.png", "Val/cat/0.png", f"{guest}/0.png")
    plan = listed(tmp_path)
    assert (list(plan.splits), plan.classes) == (["Train", "Val"], ["cat"])
    assert plan.notices[0].endswith(f"left out: the folder {guest}")
    touch(tmp_path / "other", "cat/0.png", f"{guest}/0.png")
    assert listed(tmp_path / "other").classes == sorted(["cat", guest])
    assert listed(tmp_path / "Train").splits.keys() == {"all"}


@pytest.mark.parametrize("names", [("bullet_train", "bus"), ("crash_test", "train", "car"), ("steam_train", "trainA")])
def test_a_word_in_names_tells_of_splits_only_if_all_names_have_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"{name}/0.png" for name in names), "docs/train_val.txt")
    assert listed(tmp_path).classes == sorted(names)


def test_folders_without_inputs_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "Train/cat/0.png", "Val/cat/0.png", "docs/a/b.txt", "scripts/train.py", "test/README", "notes.md")
    plan = listed(tmp_path)
    assert list(plan.splits) == ["Train", "Val"]
    assert plan.notices == (
        f"--data {tmp_path}: the splits are its folders Train and Val; all={tmp_path} reads them as classes of one "
        "split; left out: 1 .md, the folder test (without inputs)",
    )


@pytest.mark.parametrize(
    ("above", "beside"),
    [("images", "annotations/x.json"), ("images", "labels/train/0.png"), ("archive/DATA", "README"), ("a/b/c", None)],
)
def test_a_folder_that_alone_holds_the_splits_is_passed_through(tmp_path: Path, above: str, beside: str | None) -> None:
    touch(tmp_path, f"{above}/train2017/0.png", f"{above}/val2017/0.png", *([beside] if beside else []))
    plan = listed(tmp_path)
    assert list(plan.splits) == ["train2017", "val2017"]
    assert plan.splits["val2017"].table["key"].to_pylist() == ["0.png"]
    assert f"the splits are the folders in {above} train2017 and val2017" in plan.notices[0]


def test_no_input_is_lost_beside_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/0.png", "test/cat/0.png", "holiday/1.png", "figure.png", "more.jpg")
    plan = listed(tmp_path)
    assert {name: split.table["key"].to_pylist() for name, split in plan.splits.items()} == {
        "holiday": ["1.png"],
        "test": ["cat/0.png"],
        "train": ["cat/0.png"],
    }
    assert "its folders test and train, and so is holiday, beside them" in plan.notices[0]
    assert plan.notices[0].endswith("left out: 2 beside the splits")


@pytest.mark.parametrize(
    ("files", "beside"),
    [
        (["train/0.png", "bus/0.png", "truck/0.png"], "bus and truck stand beside"),
        (["train/0.png", "bus/0.png"], "bus stands beside"),
        (["train/0.png", "1.png"], "1 input stands beside"),
    ],
)
def test_one_such_name_among_classes_is_a_class(tmp_path: Path, files: list[str], beside: str) -> None:
    touch(tmp_path, *files)
    plan = listed(tmp_path)
    assert list(plan.splits) == ["all"] and "train" in plan.classes
    assert f"train is a class and no split, as {beside}; a split is named by train={tmp_path}/train" in plan.notices[0]


def test_more_classes_than_splits_are_classes_all(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/0.png" for name in ("train", "test", "a", "b", "c")))
    assert listed(tmp_path).classes == ["a", "b", "c", "test", "train"]
    assert notice(tmp_path).startswith("test and train are classes and no splits, as a, b and c stand beside")


def test_splits_whose_names_differ_in_case_alone_are_told_apart_by_the_user(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.png", "Train/0.png")
    with pytest.raises(ConfigError, match="the splits 'Train' and 'train' differ in case alone"):
        listed(tmp_path)


def test_a_store_below_a_source_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "Train/0.npy", "Val/0.npy")
    before = listed(tmp_path, content="features").splits
    touch(tmp_path, f"store/{LOCK}", "store/train/shard-00000.safetensors", f"Train/old/{LOCK}", "Train/old/x.npy")
    plan = listed(tmp_path, content="features")
    assert {name: split.table for name, split in plan.splits.items()} == {n: s.table for n, s in before.items()}
    assert plan.notices[0].endswith("left out: the folder Train/old (a store)")
    (one,) = listed(tmp_path / "Train", content="features").splits.values()
    assert one.table["key"].to_pylist() == ["0.npy"]
    with pytest.raises(ConfigError, match=r"is a store of embedx.s.* name the shards of a split, as in .*\*\.saf"):
        listed(tmp_path / "store", content="features")


def test_strangers_folders_are_listed_and_nothing_in_them_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are the system's own folders opened, which only root may do."""
    touch(
        tmp_path, "train/x/0.png", "val/x/0.png", "labels/0.png", "lost+found/0.png", "val/System Volume Information/x"
    )
    before = {folder: sorted(files) for folder, _, files in os.walk(tmp_path)}
    asked: list[str] = []

    def recorded(real: Any) -> Any:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            asked.append(os.fsdecode(path))
            return real(path, *rest, **more)

        return call

    for name in ("stat", "lstat", "open", "scandir", "listdir"):
        monkeypatch.setattr(os, name, recorded(getattr(os, name)))
    listed(tmp_path)
    monkeypatch.undo()
    assert str(tmp_path / "train/x") in asked
    assert not [path for path in asked if LOCK in path or "lost+found" in path or "System" in path]
    assert {folder: sorted(files) for folder, _, files in os.walk(tmp_path)} == before


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "AVIF", "JPEG2000", "DDS"])
def test_files_without_an_ending_are_looked_into(tmp_path: Path, format: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a", format)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png", "PNG")
    touch(tmp_path, "README", "Makefile")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    known = format != "DDS"
    (split,) = listed(tmp_path).splits.values()
    assert split.table["key"].to_pylist() == (["a", "b.png"] if known else ["b.png"])
    assert notice(tmp_path) == f"left out: {4 if known else 5} without an ending"


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path) -> None:
    touch(
        tmp_path, "0.png", *(f"{n}.heic2" for n in range(3)), *(f"x/{n}.TXT" for n in range(2)), "y.verylongending", "z"
    )
    assert notice(tmp_path) == "left out: 3 .heic2, 2 .txt, 1 .verylongend…, 1 without an ending"
    touch(tmp_path / "none", "a.doc", "b.doc")
    with pytest.raises(ConfigError, match=r"no images in .*/none; looked for .*; left out: 2 .doc$"):
        listed(tmp_path / "none")

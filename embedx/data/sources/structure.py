"""The splits that the names of a folder's sub-folders tell of, and the sub-folders that are no inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from embedx.data.sources.base import SINGLE_SPLIT, as_text
from embedx.data.sources.folder_files import Folder
from embedx.data.sources.selection import LeftOut, listed

SPLIT_WORDS = {
    "train": "train training trainval",
    "val": "val valid validation dev minival",
    "test": "test testing eval evaluation testdev holdout",
    "unlabeled": "unlabeled unlabelled",
}
"""The field's names of splits, by the role that they have.

From torchvision's ImageNet (train, val), the Hugging Face hub's keywords (train training, validation valid dev val,
test testing eval evaluation), COCO (train2017, minival, test-dev, unlabeled2017), PASCAL VOC (trainval) and STL-10."""
_ROLES = {word: role for role, words in SPLIT_WORDS.items() for word in words.split()}
_NAME = re.compile(
    r"(?:(?:images?|imgs?|data(?:set)?|seg|bounding_box)[-_. ])?"
    rf"({'|'.join(_ROLES)}|test[-_]dev)"
    r"(?:[-_. ]?(?:set|split|images?|imgs?|data|dataset))?(?:[-_. ]?\d{1,4})?"
)
"""A split's name with what collections put around it: `train2017`, `test_set`, `train_images`, `seg_train`."""
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_ROLES)})(?![a-z])")
"""A split's name as a word in a longer one: `mnist_train`, `01-val`, `trainA` (as `train_a`)."""
_GUESTS = frozenset(
    {"label", "labels", "annotation", "annotations", "mask", "masks", "gt", "groundtruth", "ground_truth"}
    | {"imagesets", "segmentationclass", "segmentationobject"}
)
"""The folders, in lower case, that hold no inputs where they stand beside splits; elsewhere they are classes."""
_PLAIN = frozenset({"train", "val", "valid", "validation", "test"})
"""The splits that need no notice, as their folders can be nothing else."""
_FEW = 4
"""The largest number of folders of which one may alone hold the splits, as `images` does beside `annotations`."""
_DEEPEST = 6


class Structure(NamedTuple):
    """How a folder is read."""

    splits: dict[str, tuple[bytes, ...]]
    """The names on the path to each split's folder; empty if the folder is one split."""
    notice: str = ""
    """The way it was read, in words, where the user may not expect it."""


def role_of(name: str) -> str | None:
    """Returns the role of a folder's name among the splits: train, val, test or unlabeled; None if it is none."""
    match = _NAME.fullmatch(name.lower())
    return match and _ROLES.get(match[1], "test")


def _roles_of(folder: Folder, names: Sequence[bytes]) -> dict[bytes, str]:
    """Returns the roles of the folders that have one by their names.

    A word in a name tells it only if there are two roles so, and none for any other folder that holds inputs.
    """
    exact = {name: role for name in names if (role := role_of(as_text(name))) is not None}
    if len(exact) == len(names):
        return exact
    words = {name: _WORD.search(re.sub("(?<=[a-z])(?=[A-Z])", "_", as_text(name)).lower()) for name in names}
    roles = {name: _ROLES[word[1]] for name, word in words.items() if word} | exact
    others = (name for name in names if name not in roles)
    certain = len(set(roles.values())) > 1 and not any(folder.enter(name).holds_inputs() for name in others)
    return roles if certain else exact


def read_structure(location: str, folder: Folder, left_out: LeftOut) -> Structure:
    """Reads the splits from the names of the folders in a folder, or in the only one in it that holds inputs.

    They are splits if there are splits only, or two roles among them and at most as many others, which are splits too
    then, so that no input is lost. What is known to stand beside splits, and is none, is left out.

    Args:
        location: The source, for the notice.
        folder: The folder of the source.
        left_out: The account to which it is added what is left out beside the splits.
    """
    return _read(location, folder, left_out, ())


def _read(location: str, folder: Folder, left_out: LeftOut, above: tuple[bytes, ...]) -> Structure:
    beside = LeftOut()
    names = folder.folders(beside)
    guests = [name for name in names if as_text(name).lower() in _GUESTS]
    roles = _roles_of(folder, [name for name in names if name not in guests])
    others = [name for name in names if name not in roles and name not in guests]
    if not roles:
        return _read_below(location, folder, left_out, above, others)
    others = [name for name in others if folder.enter(name).holds_inputs()]
    empty = [name for name in roles if not folder.enter(name).holds_inputs()]
    splits = [name for name in roles if name not in empty]
    files = folder.count_inputs(beside)
    certain = len({roles[name] for name in splits}) > 1 and len(others) <= len(splits)
    if not splits or not (certain or not (others or files)):
        return Structure({}, _words_for_one(location, splits, others, files))
    if files:
        beside.files["beside the splits"] = files
    beside.folders.update(dict.fromkeys(map(as_text, guests)))
    beside.folders.update({f"{as_text(name)} (without inputs)": None for name in empty})
    left_out.update(beside)
    found = {as_text(name): (*above, name) for name in sorted([*splits, *others])}
    return Structure(found, _words(location, splits, others, above))


def _read_below(
    location: str, folder: Folder, left_out: LeftOut, above: tuple[bytes, ...], others: Sequence[bytes]
) -> Structure:
    """Reads the structure of the only folder that holds inputs, as an unpacked archive has one."""
    if not 1 <= len(others) <= _FEW or len(above) == _DEEPEST or folder.count_inputs(LeftOut()):
        return Structure({})
    holding = [name for name in others if folder.enter(name).holds_inputs()]
    if len(holding) != 1:
        return Structure({})
    found = _read(location, folder.enter(holding[0]), left_out, (*above, holding[0]))
    return found if found.splits else Structure({})


def _words(location: str, splits: Sequence[bytes], others: Sequence[bytes], above: Sequence[bytes]) -> str:
    names = list(map(as_text, splits))
    if _PLAIN.issuperset(names) and not others and not above:
        return ""
    place = f"the folders in {as_text(b'/'.join(above))}" if above else "its folders"
    also = f", and so {_are(others)}, beside them" if others else ""
    return f"the splits are {place} {listed(names)}{also}; {SINGLE_SPLIT}={location} reads them as classes of one split"


def _words_for_one(location: str, splits: Sequence[bytes], others: Sequence[bytes], files: int) -> str:
    if not splits:
        return ""
    name = as_text(splits[0])
    verb = "stands" if (len(others) or files) == 1 else "stand"
    beside = listed(map(as_text, others)) if others else f"{files} input{'' if files == 1 else 's'}"
    return (
        f"{listed(map(as_text, splits))} {'is a class' if len(splits) == 1 else 'are classes'} and no "
        f"split{'' if len(splits) == 1 else 's'}, as {beside} {verb} beside; a split is named by "
        f"{name}={location.rstrip('/')}/{name}"
    )


def _are(names: Sequence[bytes]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {listed(map(as_text, names))}"

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import NoReturn

import pytest

from embedx.errors import ConfigError, StoreError
from embedx.store.format import creation
from embedx.store.format.creation import check_creation, create, create_once, create_shard, exchange

TOKEN = "0123456789abcdef"


def write(path: Path, data: str) -> str:
    path.write_text(data)
    return str(path)


@pytest.fixture(params=["link", "rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of giving a name: the second one where a file system says that it has no links."""
    if request.param == "rename":
        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def no_links(*paths: str, **options: bool) -> NoReturn:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.usefixtures("way")
def test_a_name_is_given_once(tmp_path: Path) -> None:
    final = str(tmp_path / "final")
    assert create(write(tmp_path / "one", "one"), final)
    assert not (tmp_path / "one").exists()
    assert not create(write(tmp_path / "two", "two"), final)
    assert Path(final).read_text() == "one" and (tmp_path / "two").exists()
    assert create_once(str(tmp_path / "two"), final) == (final, False)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.usefixtures("way")
def test_a_shard_takes_the_same_bytes_and_goes_beside_others(tmp_path: Path) -> None:
    final = str(tmp_path / "shard-00007.safetensors")
    other = str(tmp_path / f"shard-00007~{hashlib.sha256(b'two').hexdigest()[:8]}.safetensors")
    assert create_shard(write(tmp_path / "a", "one"), final) == (final, True)
    assert create_shard(write(tmp_path / "a", "one"), final) == (final, False)
    assert create_shard(write(tmp_path / "a", "two"), final) == (other, True)
    assert create_shard(write(tmp_path / "a", "two"), final) == (other, False)
    Path(other).write_text("2wo")
    with pytest.raises(StoreError, match="has other bytes than its name says"):
        create_shard(write(tmp_path / "a", "two"), final)


def test_a_link_that_was_made_counts_though_an_error_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does if the answer to the first call was lost, and the second finds the name taken."""
    link = os.link

    def link_twice(one: str, two: str, *, follow_symlinks: bool) -> None:
        link(one, two, follow_symlinks=follow_symlinks)
        link(one, two, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", link_twice)
    assert create(write(tmp_path / "one", "one"), str(tmp_path / "final"))
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.usefixtures("way")
def test_a_folder_where_names_are_given_once_is_good_for_several(tmp_path: Path) -> None:
    check_creation(tmp_path, TOKEN)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_has_neither_way_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(creation, "_renameat2", lambda one, other, flags: False)
    with pytest.raises(ConfigError, match=r"its file system \([a-z0-9]+\) can neither link a file nor rename it"):
        check_creation(tmp_path, TOKEN)
    assert list(tmp_path.iterdir()) == []


def test_two_names_are_exchanged(tmp_path: Path) -> None:
    write(tmp_path / "one", "1"), write(tmp_path / "two", "2")
    assert exchange(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one").read_text() == "2"
    assert not exchange(tmp_path / "one", tmp_path / "three")

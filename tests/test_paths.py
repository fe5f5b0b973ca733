"""Paths as users write them; bash is asked for what `~` and variables mean, and pathlib for what a URL does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from embedx.config import ExtractConfig
from embedx.data.sources import parse_data
from embedx.errors import ConfigError
from embedx.paths import BucketPath, expand_backbone, expand_path, file_faults, local_path
from embedx.vectors.probing.probe_config import ProbeConfig

WRITTEN = [
    "~",
    "~/store",
    "~root/x",
    "~nobody-has-this-name/x",
    "$FOLDER/a",
    "${FOLDER}a",
    "$HOME",
    "/x/~/y",
    "x/$FOLDER/$HOME",
    "$FOLDER$FOLDER",
    "a.b-c/$FOLDER-1",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FOLDER", "some where")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    return home


@pytest.mark.parametrize("text", WRITTEN)
def test_a_path_means_what_it_means_to_a_shell(text: str) -> None:
    bash = subprocess.run(["bash", "-c", f"IFS=; printf %s {text}"], capture_output=True, text=True, check=True)
    assert expand_path(text) == bash.stdout


@pytest.mark.parametrize("name", ["plain", "with space", "50%25", "%20", "a?b#c", "ä", "caf\udce9", "$", "~", "a=b"])
def test_a_file_url_is_the_path_that_pathlib_makes_it_of(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / name
    url = path.as_uri()
    assert expand_path(url) == expand_path(url.replace("://", "://localhost")) == str(path)
    assert expand_path(Path(url)) == str(path)
    assert local_path(url) == path


@pytest.mark.parametrize("name", ["~", "~x", "$HOME", "$UNSET", "${UNSET}", "file:/x", "s3:/lake", "a$FOLDER"])
def test_a_file_of_that_very_name_wins(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert expand_path(name) == name
    assert local_path(name) == Path(name)


@pytest.mark.parametrize("text", ["$UNSET/store", "x/${UNSET}", "file:///$UNSET"])
def test_a_variable_that_is_not_set_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"UNSET.*: the environment variable UNSET is not set"):
        expand_path(text)


@pytest.mark.parametrize("text", ["", "a\0b", "file:///a\0b"])
def test_an_empty_path_is_not_the_current_folder(text: str) -> None:
    with pytest.raises(ValueError, match=r"no path is empty, or has a NUL byte; write \. for the current folder"):
        expand_path(text)


def test_a_file_url_of_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"file://nas/x names the machine nas; write file:///PATH"):
        expand_path("file://nas/x")


@pytest.mark.parametrize("url", ["s3://lake/store", "gs://lake", "https://host/a.pt?sig=$UNSET", "hf://datasets/x"])
def test_another_url_is_refused_by_local_paths_and_left_as_it_is_by_others(url: str) -> None:
    assert expand_path(url) == url
    with pytest.raises(ValueError, match=r"^\S+ is a URL, and can't be used here; give a path on this machine"):
        local_path(url)


@pytest.mark.parametrize("name", ["resnet18", "timm:vit_base.tag", "hf:facebook/dinov2-base", "mine:build", "none"])
def test_a_backbone_that_is_no_path_stays(name: str) -> None:
    assert expand_backbone(name) == name


def test_every_setting_that_is_a_path_is_expanded(home: Path) -> None:
    config = ExtractConfig(backbone="~/m.pt2", out=Path("~/store"), checkpoint="file:///w.pt", root="$FOLDER")
    assert config.backbone == f"{home}/m.pt2"
    assert (config.out, config.checkpoint, config.root) == (home / "store", "/w.pt", "some where")
    assert ExtractConfig(backbone="hf:~/vit", out=Path("x")).backbone == f"hf:{home}/vit"
    assert ExtractConfig(backbone="x", out=Path("x"), root="s3://lake/x").root == "s3://lake/x"
    assert ProbeConfig(out=Path("$HOME/heads")).out == home / "heads"
    for place in (Path("s3://lake/store/"), "S3://lake/store", BucketPath("s3://lake/store")):
        assert ExtractConfig(backbone="x", out=place).out == BucketPath("s3://lake/store")
    with pytest.raises(ConfigError) as caught:
        ExtractConfig(backbone="$UNSET", out="s3://", checkpoint="~/w.pt")
    assert [fault.split()[0] for fault in caught.value.faults] == ["--backbone", "--out"]


@pytest.mark.parametrize("text", ["{}", "x={}"])
@pytest.mark.parametrize("written", ["~/in", "$HOME/in", "file://{home}/in", "file:{home}/in"])
def test_a_source_is_expanded_behind_its_name(home: Path, text: str, written: str) -> None:
    (home / "in").mkdir()
    (home / "in" / "a.png").touch()
    (source,) = parse_data([text.format(written.format(home=home))]).values()
    assert source.scan()["path"].to_pylist() == [str(home / "in" / "a.png").encode()]


def test_a_source_s_unset_variable_is_a_fault_among_others() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_data(["x=$UNSET/a", "nowhere"])
    first, second = caught.value.faults
    assert first.startswith("--data $UNSET/a: the environment variable UNSET is not set")
    assert "there is no folder nowhere" in second


def test_a_file_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    already = "is there already; choose another path, or give --overwrite to replace it"
    for name, told in (
        ("folder", "it is a folder"),
        ("none/x", "there is no folder"),
        ("file/x", "there is no folder"),
    ):
        for overwrite in (False, True):
            (fault,) = file_faults("--html", tmp_path / name, overwrite=overwrite)
            assert fault.startswith(f"--html {tmp_path / name}: {told}")
    for name in ("file", "dangling"):
        assert file_faults("--out", tmp_path / name, overwrite=False) == [f"--out {tmp_path / name}: {already}"]
        assert file_faults("--out", tmp_path / name, overwrite=True) == []
    assert file_faults("--out", tmp_path / "new", overwrite=False) == []

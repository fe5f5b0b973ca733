"""What a shell completes, asked as the shells' own scripts ask it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm

from embedx.cli.completion import timm_names, torchvision_names
from embedx.models.backbones.torchvision import backbone_names
from tests.cli.calls import Embedx

SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def completed(embedx: Embedx, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Returns the values for the last of these words, as bash has cut them."""

    def ask(*words: str) -> list[str]:
        for name, value in asked(*words).items():
            monkeypatch.setenv(name, value)
        done = embedx()
        assert (done.code, done.stderr) == (0, "")
        return list(filter(None, done.stdout.splitlines()))

    return ask


def asked(*words: str) -> dict[str, str]:
    """What bash's script sets."""
    return {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1), "_EMBEDX_COMPLETE": "complete_bash"}


def test_completing_imports_nothing_large() -> None:
    code = "import sys, embedx.cli.app as app; app.run(); assert not {'torch', 'numpy', 'timm'} & set(sys.modules)"
    environment = os.environ | asked("embedx", "layers", "timm", ":", "resnet18")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "resnet18.a1_in1k" in done.stdout.splitlines()


def test_names_read_from_source_files_are_those_of_the_libraries() -> None:
    assert torchvision_names() == backbone_names()
    names = {name.removeprefix("timm:") for name in timm_names()}
    architectures, tagged = set(timm.list_models()), set(timm.list_models(pretrained=True))
    assert architectures <= names
    assert len(tagged - names) < 0.05 * len(tagged)  # a few are made by loops
    assert len(names - architectures - tagged) < 0.01 * len(names)  # a few were never published


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["embedx", "prob"], ["probe"]),
        (["embedx", "extract", "--prec"], ["--precision"]),
        (["embedx", "extract", "--precision", ""], ["auto", "fp32", "tf32", "bf16", "fp16"]),
        (["embedx", "extract", "--backbone", "wide_"], ["wide_resnet101_2", "wide_resnet50_2"]),
        (["embedx", "layers", "timm", ":", "vit_base_patch16_dinov3."], ["vit_base_patch16_dinov3.lvd1689m"]),
        (["embedx", "extract", "--weights", "sa"], ["sample"]),
        (["embedx", "probe", "store", "--test", ""], ["val", "tåg"]),
        (["embedx", "extract", "-o", "store", "--layer", "la"], ["layer3"]),
        (["embedx", "compare", "store", "store", "--name", ""], ["embeddings", "layer3"]),
        (["embedx", "probe", "nothing", "--test", ""], []),
        (["embedx", "extract", "--out", ""], []),  # which leaves it to the shell: paths
    ],
)
def test_values(
    completed: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    values: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "store", "val", "tåg")
    assert completed(*words) == values


@pytest.mark.parametrize("text", ["{", "[]", '{"plan": {"splits": [1]}}', "[" * 100_000])
def test_a_damaged_store_completes_nothing(completed: Callable[..., list[str]], tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert completed("embedx", "probe", str(tmp_path), "--test", "") == []


def test_the_path_of_an_unknown_user_completes_nothing(completed: Callable[..., list[str]]) -> None:
    assert completed("embedx", "probe", "~nobody-at-all/store", "--test", "") == []


@pytest.mark.parametrize("quoted", ["'my $(touch ran) store'", r"my\ \$\(touch\ ran\)\ store"])
def test_a_store_s_path_may_be_quoted(
    completed: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quoted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "my $(touch ran) store", "val")
    assert completed("embedx", "probe", quoted, "--test", "") == ["val"]
    assert not (tmp_path / "ran").exists()


HOSTILE = [r"\$(touch ran)", "$(touch ran)", "`touch ran`", r"\`touch ran`", "x;touch ran", "'|touch ran'", "&touch"]
HOSTILE += ["*", "~", "<x", "a b", "a\nb", "\x1b[2J", "-x", "=ls", "{a,b}", "!!", "#", ""]


def test_names_that_a_shell_would_not_take_as_they_stand_are_left_out(
    completed: Callable[..., list[str]], tmp_path: Path
) -> None:
    """zsh evaluates what typer's script gives it: such a name, in a store of somebody else's, was run at a TAB."""
    write_manifest(tmp_path, "val", *HOSTILE)
    assert completed("embedx", "probe", str(tmp_path), "--test", "") == ["val"]


def test_the_layers_of_a_backbone_are_completed_once_they_have_been_listed(
    completed: Callable[..., list[str]], embedx: Embedx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ("embedx", "extract", "--backbone", "resnet18", "--layer", "layer4.1.c")
    assert completed(*words) == []
    monkeypatch.delenv("_EMBEDX_COMPLETE")
    listed = [line.split("\t")[0] for line in embedx("layers", "resnet18").stdout.splitlines()]
    assert completed(*words) == [name for name in listed if name.startswith("layer4.1.c")] != []
    assert completed("embedx", "extract", "--backbone", "=", "resnet18", "--layer", "fc") == []
    assert completed("embedx", "extract", "--backbone", "=", "resnet18", "--layer", "avg") == ["avgpool"]


def write_manifest(store: Path, *splits: str) -> None:
    store.mkdir(exist_ok=True)
    manifest = {"plan": {"splits": {split: {} for split in splits}}, "recipe": {"layers": ["layer3"]}}
    (store / "manifest.json").write_text(json.dumps(manifest))


ASKED = {
    "bash": """
        COMP_WORDS=(embedx extract --backbone timm : vit_base_patch16_dinov3.); COMP_CWORD=5
        _embedx_completion embedx; printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        _arguments() { print -r -- "$@" }
        words=(embedx extract --backbone timm:vit_base_patch16_dinov3.); CURRENT=4
        _embedx_completion
    """,
}


INSTALLED = {"bash": ". ~/.bashrc", "zsh": ". ~/.zfunc/_embedx"}
"""The way to what has been installed."""


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("shell", [name for name in ASKED if shutil.which(name)])
def test_the_shell_s_own_script_works_in_the_shell(shell: str, shown: bool, tmp_path: Path) -> None:
    loaded = 'eval "$(embedx --show-completion)"' if shown else f"embedx --install-completion >&2; {INSTALLED[shell]}"
    script = f"compdef() {{ :; }}\n{loaded}\n{ASKED[shell]}"
    environment = os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "vit_base_patch16_dinov3.lvd1689m" in done.stdout.replace("\\", "")
    assert (done.stdout.startswith("vit_")) == (shell == "bash")  # as bash has taken `timm:` for another word

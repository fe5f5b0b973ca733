"""Names of another kind of backbone than they were given as: the message has the flag to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import describe_backbone


@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("mine", "--backbone mine:build"),
        ("mine.py", "--backbone mine:build"),
        ("mine.build", "--backbone mine:build"),
        ("package.models", "--backbone package.models:FUNCTION"),
        ("package/models.py", "--backbone package.models:FUNCTION"),
        ("package.models.small", "--backbone package.models:small"),
        ("facebook/dinov2-base", "--backbone hf:facebook/dinov2-base"),
        ("saved", "--backbone hf:saved"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "--backbone timm:vit_tiny_patch16_224.augreg_in21k"),
        ("vit_tiny_patch16_224", "--backbone timm:vit_tiny_patch16_224"),
        ("timm", "--backbone timm:NAME"),
        ("last.ckpt", "give --checkpoint last.ckpt, and their architecture as --backbone"),
        ("resnet5", "did you mean resnet50?"),
        ("resnet", "names that begin so: resnet101, resnet152, resnet18, resnet34, resnet50"),
        ("reznet50", "did you mean resnet50?"),
        ("timm:vit_tiny_patch", "names that begin so: timm:vit_tiny_patch16_224, timm:vit_tiny_patch16_384"),
    ],
)
def test_the_message_says_what_to_type(
    name: str, next_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "mine.py").write_text("raise SystemExit('run')\ndef _help(): pass\ndef build(): pass\n")
    (tmp_path / "package/models.py").write_text("def small(): pass\ndef large(): pass\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/config.json").write_text("{}")
    (tmp_path / "last.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        describe_backbone(ExtractConfig(backbone=name, out=Path("store"), weights="random"), download=False)
    assert next_step in str(caught.value)

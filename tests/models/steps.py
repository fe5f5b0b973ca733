"""The preprocessing of a backbone, for tests of those that take images."""

from __future__ import annotations

from embedx.models.backbones import BackboneSpec
from embedx.recipe import Preprocessing


def steps_of(spec: BackboneSpec) -> Preprocessing:
    assert spec.preprocessing is not None
    return spec.preprocessing

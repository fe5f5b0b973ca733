from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from embedx.errors import ConfigError
from embedx.models.embedder import Embedder, pool_features
from embedx.recipe import Preprocessing

STEPS = Preprocessing(resize=8, crop=8, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BY_NUMPY = {
    "avg": lambda values, axes: values.mean(axes),
    "max": lambda values, axes: values.max(axes),
    "gem": lambda values, axes: (values.clip(1e-6) ** 3).mean(axes) ** (1 / 3),
}


def features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Backbone(nn.Module):
    """Gives the image as it comes in, so that the steps around a backbone can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.one


@pytest.mark.parametrize("how", BY_NUMPY)
@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 5, 7), (1,)), ((2, 7, 4, 4), (2, 3)), ((2, 4, 4, 7), (1, 2)), ((2, 7, 1, 1), (2, 3))]
)
def test_pooling_is_that_of_numpy(how: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    values = features(*shape)
    pooled = pool_features(values, how)
    assert pooled.shape == (2, 7)
    np.testing.assert_allclose(pooled.numpy(), BY_NUMPY[how](values.numpy(), axes), rtol=1e-5, atol=1e-6)


def test_the_class_token_is_the_first() -> None:
    values = features(2, 5, 7)
    assert torch.equal(pool_features(values, "cls"), values[:, 0])


@pytest.mark.parametrize("how", ["avg", "max", "gem", "cls", "none"])
def test_vectors_stay_as_they_are(how: str) -> None:
    values = features(2, 7)
    assert pool_features(values, how) is values


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 7, 4, 3), (2, 3, 4, 5, 6)])
def test_nothing_is_pooled_where_that_is_asked(shape: tuple[int, ...]) -> None:
    values = features(*shape)
    assert pool_features(values, "none") is values


def test_a_map_has_no_class_token() -> None:
    with pytest.raises(ConfigError, match="--pool cls needs tokens, but the layer gives a map; give avg, max or gem"):
        pool_features(features(2, 7, 4, 3), "cls")


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4, 5, 6), (2, 5, 5, 5), (2, 3, 4, 5)])
def test_other_shapes_can_not_be_pooled(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="could be more than one of its dimensions; give --pool none"):
        pool_features(features(*shape), "avg")


def test_images_are_normalised_as_the_preset_says() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    embedder = Embedder(Backbone(), STEPS, pool="none", normalize=False)
    mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in (STEPS.mean, STEPS.std))
    outputs = embedder(images)
    assert list(outputs) == ["embeddings"]
    expected = (images.numpy() / np.float32(255) - mean) / std
    np.testing.assert_allclose(outputs["embeddings"].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_vectors_are_scaled_to_unit_length_where_that_is_asked() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    vectors = Embedder(Backbone(), STEPS, pool="avg", normalize=True)(images)["embeddings"]
    plain = Embedder(Backbone(), STEPS, pool="avg", normalize=False)(images)["embeddings"]
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4))
    assert torch.allclose(vectors, plain / plain.norm(dim=1, keepdim=True))


def test_an_unpooled_map_is_scaled_to_unit_length_along_its_channels() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    maps = Embedder(Backbone(), STEPS, pool="none", normalize=True)(images)["embeddings"]
    assert torch.allclose(maps.norm(dim=1), torch.ones(4, 8, 8))

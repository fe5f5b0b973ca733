"""Batches that are decoded where the model runs. Everything but nvJPEG itself runs on a CPU too, in the same way."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from embedx.data.decoding import images as decode_module
from embedx.data.decoding import nvjpeg as device_module
from embedx.data.decoding.images import ImageDecoder, decode, is_plain_jpeg, resize
from embedx.data.decoding.nvjpeg import CopyToDevice, DecodeOnDevice, PartialDecoder, try_to_decode
from embedx.data.loading.loaders import SplitLoader
from embedx.errors import ConfigError
from embedx.recipe import Preprocessing
from embedx.values import Interpolation
from tests.data.loading.test_loaders import plan_of

STEPS = Preprocessing(resize=36, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
CPU = torch.device("cpu")
CUDA = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def images(photos: Path) -> dict[str, bytes]:
    photo = Image.open(photos / "chelsea.png").convert("RGB").resize((300, 200))
    turned, upright = Image.Exif(), Image.Exif()
    turned[0x0112], upright[0x0112] = 6, 1
    plain = saved(photo, quality=95)
    return {
        "plain": plain,
        "gray": saved(photo.convert("L")),
        "progressive": saved(photo, progressive=True),
        "upright": saved(photo, exif=upright),
        "padded": plain + bytes(7),
        "turned": saved(photo, exif=turned),
        "turned by xmp": saved(
            photo, xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation>'
        ),
        "cmyk": saved(photo.convert("CMYK")),
        "rgb": saved(photo, keep_rgb=True),
        "large": saved(photo.resize((36 * 8, 36 * 9))),
        "cut": plain[: len(plain) // 2],
        "png": saved(photo, "PNG"),
        "text": b"no image",
        "empty": b"",
        "elongated": saved(photo.resize((1, 2000))),
    }


PLAIN = {"plain", "gray", "progressive", "upright", "padded"}


def test_only_a_plain_jpeg_is_left_to_a_device(images: dict[str, bytes]) -> None:
    assert {name for name, data in images.items() if is_plain_jpeg(data, STEPS, 400_000)} == PLAIN
    width, height = Image.open(io.BytesIO(images["plain"])).size
    assert not is_plain_jpeg(images["plain"], STEPS, width * height - 1)


@pytest.fixture
def folder(tmp_path: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (tmp_path / f"images/{name}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"images/{name}.jpg").write_bytes(data)
    return tmp_path / "images"


def batches(
    folder: Path, decoder: Any, place: Callable[[Any], Any], workers: int
) -> dict[str, tuple[Tensor, str | None]]:
    plan = plan_of(folder)
    loader = SplitLoader(plan, plan.unit_rows(8), decoder, batch_size=4, workers=workers)
    found: dict[str, tuple[Tensor, str | None]] = {}
    for batch in map(place, loader):
        assert batch["images"].shape == (4, 3, 32, 32) and batch["images"].is_contiguous(
            memory_format=torch.channels_last
        )
        assert not batch["images"][len(batch["keys"]) :].any()
        found |= dict(zip(batch["keys"], zip(batch["images"].cpu(), batch["reasons"], strict=False), strict=False))
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_batches_are_those_that_workers_decode(folder: Path, device: torch.device, workers: int) -> None:
    inner = ImageDecoder(STEPS, 400_000)
    expected = batches(folder, inner, lambda batch: batch, 2)
    found = batches(folder, PartialDecoder(inner), DecodeOnDevice(inner, 4, device), workers)
    assert list(found) == list(expected)
    assert sum(reason is None for _, reason in found.values()) == len(expected) - 4
    for name, (image, reason) in expected.items():
        assert found[name][1] == reason
        off = (found[name][0].int() - image.int()).abs()
        assert off.max() == 0 if device.type == "cpu" else off.float().mean() < 2, name


def test_what_the_device_does_not_take_is_decoded_by_the_cpu_or_rejected(
    folder: Path, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that fails as nvJPEG does: for the whole batch, without saying whose fault it is."""
    lengths: list[int] = []

    def poor(encoded: list[Tensor], mode: ImageReadMode, device: torch.device) -> list[Tensor]:
        lengths.append(len(encoded))
        if any(len(data) in (len(images["gray"]), len(broken)) for data in encoded):
            raise RuntimeError("nvjpegDecode failed: 5")
        return decode_jpeg(encoded, mode=mode, device=device)

    monkeypatch.setattr(device_module, "decode_jpeg", poor)
    broken = images["plain"].replace(b"\xff\xc0", b"\xff\xc5")  # of a kind that nobody decodes
    assert is_plain_jpeg(broken, STEPS), "as far as its headers tell"
    for name in images.keys() - {"gray", "plain", "progressive"}:
        (folder / f"{name}.jpg").unlink()
    (folder / "broken.jpg").write_bytes(broken)
    inner = ImageDecoder(STEPS, 400_000)
    expected = batches(folder, inner, lambda batch: batch, 0)
    found = batches(folder, PartialDecoder(inner), DecodeOnDevice(inner, 4, CPU), 0)
    assert lengths == [4, 1, 1, 1, 1], "only what fails is tried one by one"
    assert {name: reason for name, (_, reason) in found.items()} == {
        name: reason for name, (_, reason) in expected.items()
    }
    assert found["broken.jpg"][1] and not found["broken.jpg"][0].any()
    assert all(torch.equal(found[name][0], image) for name, (image, _) in expected.items())


def test_memory_that_is_short_is_no_image_s_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(device_module, "decode_jpeg", poor)
    inner = ImageDecoder(STEPS, 400_000)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        batches(folder, PartialDecoder(inner), DecodeOnDevice(inner, 4, CPU), 0)


def test_many_images_are_decoded_some_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_AT_A_TIME", 2)
    lengths: list[int] = []

    def counting(encoded: list[Tensor], **how: Any) -> list[Tensor]:
        lengths.append(len(encoded))
        found: list[Tensor] = decode_jpeg(encoded, **how)
        return found

    monkeypatch.setattr(device_module, "decode_jpeg", counting)
    inner = ImageDecoder(STEPS, 400_000)
    expected = batches(folder, inner, lambda batch: batch, 0)
    found = batches(folder, PartialDecoder(inner), DecodeOnDevice(inner, 4, CPU), 0)
    assert all(torch.equal(found[name][0], image) for name, (image, _) in expected.items())
    assert sum(lengths) == len(PLAIN) and max(lengths) <= 2


@pytest.mark.parametrize(("together", "calls"), [(2**28, [4, 1]), (2 * 3 * 200 * 300 * 4, [2, 2, 1]), (1, [1] * 5)])
def test_images_of_one_size_are_resized_together_as_far_as_memory_allows(
    folder: Path, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, together: int, calls: list[int]
) -> None:
    monkeypatch.setattr(device_module, "_RESIZED_BYTES", together)
    stacks: list[int] = []

    def counting(pixels: Tensor, steps: Preprocessing, *, max_pixels: int) -> Tensor:
        stacks.append(len(pixels))
        return decode_module.preprocess(pixels, steps, max_pixels=max_pixels)

    monkeypatch.setattr(device_module, "preprocess", counting)
    for name in images.keys() - PLAIN:
        (folder / f"{name}.jpg").unlink()
    inner = ImageDecoder(STEPS, 400_000)
    expected = batches(folder, inner, lambda batch: batch, 0)
    found = batches(folder, PartialDecoder(inner), DecodeOnDevice(inner, 4, CPU), 0)
    assert stacks == calls
    assert all(torch.equal(found[name][0], image) for name, (image, _) in expected.items())


def test_a_torchvision_that_decodes_nothing_there_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Cannot decode: torchvision was not compiled with nvJPEG")

    monkeypatch.setattr(device_module, "decode_jpeg", none)
    with pytest.raises(ConfigError, match=r"--decoder cuda: .* not compiled with nvJPEG.*; give --decoder cpu"):
        try_to_decode(CPU)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_in_float_as_a_gpu_does_it_is_within_a_level(
    images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, interpolation: Interpolation
) -> None:
    pixels = decode(images["plain"])
    native = resize(pixels, 36, 54, interpolation)
    monkeypatch.setattr(decode_module, "_RESIZES_BYTES", ())
    as_float = resize(pixels, 36, 54, interpolation)
    off = (as_float.int() - native.int()).abs()
    assert as_float.dtype == torch.uint8 and 0 < off.max() <= 1


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_an_upload_is_the_same_batch_elsewhere(device: torch.device) -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8).to(memory_format=torch.channels_last)
    batch = {"images": images, "keys": ["a"]}
    there = CopyToDevice(device, "images")(batch)
    assert there["images"].device.type == device.type and there["keys"] is batch["keys"]
    assert torch.equal(there["images"].cpu(), images) and there["images"].stride() == images.stride()
    assert batch["images"] is images

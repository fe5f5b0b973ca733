"""Batches on a CUDA device: copied there while it computes, or decoded there by nvJPEG."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from embedx.data.decoding.batch_rows import BatchBuffer, Lend, own_memory
from embedx.data.decoding.images import ImageDecoder, is_plain_jpeg, preprocess
from embedx.data.reading.files import RejectedInputError
from embedx.errors import ConfigError

_AT_A_TIME = 128
"""The number of images that are decoded together: of fewer each takes longer (on an H200), of more they fill memory."""
_RESIZED_BYTES = 256 * 2**20
"""The memory of the images, in float32, that are resized together."""
_DEVICE_ERROR = re.compile("out of memory|ALLOCATOR|CUDA error", re.IGNORECASE)
"""The texts of decoding errors that are the device's and not an image's: torchvision raises a RuntimeError for both."""


class SideStream:
    """A CUDA stream beside the one that computes; on the CPU, which has no streams, it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def use(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which work for the device goes to this stream."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        """Waits until the device has done all work on this stream."""
        if self._stream is not None:
            self._stream.synchronize()

    def hand_over(self, tensor: Tensor) -> Tensor:
        """Makes the computing stream wait, on the device, for this tensor, which was made on the side stream."""
        if self._stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._stream)
            tensor.record_stream(computing)
        return tensor


class CopyToDevice:
    """Copies one entry of each batch to a device; from pinned memory it does not wait for the copy."""

    def __init__(self, device: torch.device, entry: str) -> None:
        self._stream = SideStream(device)
        self._entry = entry

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with the copy in place of the entry."""
        with self._stream.use():
            copied = batch[self._entry].to(self._stream.device, non_blocking=True)
        return {**batch, self._entry: self._stream.hand_over(copied)}


def try_to_decode(device: torch.device) -> None:
    """Decodes a small JPEG on a device, as a test.

    Raises:
        ConfigError: If torchvision can't decode it there.
    """
    try:
        _decode([encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))], device)
    except RuntimeError as error:
        raise ConfigError(
            f"--decoder cuda: torchvision decodes no JPEG on {device} ({error}); give --decoder cpu, or install a "
            "torchvision that was built with nvJPEG"
        ) from error


def _decode(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    pixels: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return pixels


class PartialDecoder:
    """Decodes all inputs in the worker except plain JPEGs, which it leaves encoded for `DecodeOnDevice`."""

    def __init__(self, decoder: ImageDecoder) -> None:
        self._decoder = decoder

    def new_buffer(self, batch_size: int, lend: Lend = own_memory) -> BatchBuffer:
        """Returns an empty buffer, which takes any number of rows."""
        return _PartialBuffer(self._decoder)


class _PartialBuffer:
    def __init__(self, decoder: ImageDecoder) -> None:
        self._decoder = decoder
        self._encoded: dict[int, Tensor] = {}
        self._decoded: dict[int, Tensor] = {}

    def decode_into(self, row: int, data: bytes) -> None:
        if is_plain_jpeg(data, self._decoder.preprocessing, self._decoder.max_pixels):
            self._encoded[row] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        else:
            image = self._decoder.empty(1)[0]
            self._decoder.decode_into(image, data)
            self._decoded[row] = image

    def zero(self, row: int) -> None:
        self._encoded.pop(row, None)
        self._decoded.pop(row, None)

    def to_batch(self, count: int) -> dict[str, Any]:
        """Joins the rows into few tensors, because each passes to the parent process by a file of its own."""
        nothing = torch.empty(0, dtype=torch.uint8)
        return {
            "encoded": torch.cat([nothing, *self._encoded.values()]),
            "encoded_rows": list(self._encoded),
            "encoded_sizes": [len(data) for data in self._encoded.values()],
            "decoded": torch.stack(list(self._decoded.values())) if self._decoded else nothing,
            "decoded_rows": list(self._decoded),
        }


class DecodeOnDevice:
    """Completes the batches of a PartialDecoder on a device: decodes their JPEGs by nvJPEG and resizes them.

    The JPEGs that the device refuses go to the decoder, whose preprocessing applies. The device can be the CPU too.
    """

    def __init__(self, decoder: ImageDecoder, batch_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._batch_size = batch_size
        self._stream = SideStream(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with its images [B, 3, H, W] uint8; an image found to be damaged now gets its reason."""
        own = dict(batch)
        encoded = own.pop("encoded").split(own.pop("encoded_sizes"))
        rows, decoded_rows, decoded = own.pop("encoded_rows"), own.pop("decoded_rows"), own.pop("decoded")
        reasons = own["reasons"] = list(own["reasons"])
        size = self._decoder.preprocessing.crop
        with self._stream.use():
            images = torch.zeros(self._batch_size, size, size, 3, dtype=torch.uint8, device=self._stream.device)
            images = images.permute(0, 3, 1, 2)
            if decoded_rows:
                images[decoded_rows] = decoded.to(self._stream.device, non_blocking=True)
            for start in range(0, len(rows), _AT_A_TIME):
                # Torchvision decodes on a stream of its own, and may be given memory that work begun here still reads.
                self._stream.synchronize()
                some = slice(start, start + _AT_A_TIME)
                self._resize_into(images, rows[some], self._pixels(list(encoded[some])), reasons)
        return {**own, self._decoder.entry: self._stream.hand_over(images)}

    def _resize_into(
        self, images: Tensor, rows: list[int], found: list[Tensor | RejectedInputError], reasons: list[str | None]
    ) -> None:
        """Resizes images of one size together, as a GPU takes longer to be told of a resize than for the resize."""
        sizes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for row, pixels in zip(rows, found, strict=True):
            if isinstance(pixels, RejectedInputError):
                reasons[row] = str(pixels)
            else:
                sizes.setdefault(pixels.shape, []).append((row, pixels))
        for size, same in sizes.items():
            together = max(1, _RESIZED_BYTES // (size.numel() * torch.float32.itemsize))
            for start in range(0, len(same), together):
                some, stack = zip(*same[start : start + together], strict=True)
                resized = preprocess(
                    torch.stack(stack), self._decoder.preprocessing, max_pixels=self._decoder.max_pixels
                )
                images[list(some)] = resized

    def _pixels(self, encoded: list[Tensor]) -> list[Tensor | RejectedInputError]:
        """Decodes all images at once; if that fails, one by one, and those that fail again on the CPU.

        Raises:
            torch.OutOfMemoryError: If the device has not enough memory for the images.
        """
        try:
            return list(_decode(encoded, self._stream.device))
        except RuntimeError as error:
            if _DEVICE_ERROR.search(str(error)):
                raise torch.OutOfMemoryError(str(error)) from error
            if len(encoded) > 1:
                self._stream.synchronize()
                return [pixels for data in encoded for pixels in self._pixels([data])]
        try:
            return [self._decoder.decode(encoded[0].numpy().tobytes()).to(self._stream.device)]
        except RejectedInputError as error:
            return [error]

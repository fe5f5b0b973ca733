"""Batches on their way to a CUDA device: copied there beside what it computes, or decoded there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from embedx.data.decoding.batch_rows import Rows
from embedx.data.decoding.images import ImageDecoder, is_plain_jpeg, preprocess
from embedx.data.reading.files import RejectedInputError
from embedx.errors import ConfigError

_AT_A_TIME = 64
"""Images that are decoded together."""
_OF_THE_DEVICE = re.compile("out of memory|ALLOCATOR|CUDA error", re.IGNORECASE)
"""Errors of decoding that are no image's: torchvision makes a RuntimeError of each."""


class _Beside:
    """A stream of its own beside the one that computes; of the CPU, which has none, nothing.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def run(self) -> contextlib.AbstractContextManager[Any]:
        """While this lasts, what the device is given to do goes to that stream."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Waits until all is done that the device was given to do on that stream."""
        if self._stream is not None:
            self._stream.synchronize()

    def join(self, tensor: Tensor) -> Tensor:
        """Has what is computed next wait, on the device, for this tensor, which was made beside it."""
        if self._stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._stream)
            tensor.record_stream(computing)
        return tensor


class Upload:
    """Copies batches to a device; from pinned memory without waiting for it.

    Args:
        device: Where to.
        entry: The batch's name for what is copied.
    """

    def __init__(self, device: torch.device, entry: str) -> None:
        self._beside = _Beside(device)
        self._entry = entry

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, with the copy in place of what was copied."""
        with self._beside.run():
            copied = batch[self._entry].to(self._beside.device, non_blocking=True)
        return {**batch, self._entry: self._beside.join(copied)}


def try_to_decode(device: torch.device) -> None:
    """Tries whether JPEGs can be decoded on a device.

    Raises:
        ConfigError: If not.
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


class EncodedDecoder:
    """Leaves plain JPEGs as they are, for a device to decode; all else is decoded here.

    Args:
        decoder: What decodes the others.
    """

    def __init__(self, decoder: ImageDecoder) -> None:
        self._decoder = decoder

    def begin(self, batch_size: int) -> Rows:
        """A batch to be filled."""
        return _EncodedRows(self._decoder)


class _EncodedRows:
    def __init__(self, decoder: ImageDecoder) -> None:
        self._decoder = decoder
        self._encoded: dict[int, Tensor] = {}
        self._decoded: dict[int, Tensor] = {}

    def fill(self, row: int, data: bytes) -> None:
        if is_plain_jpeg(data, self._decoder.preprocessing, self._decoder.max_pixels):
            self._encoded[row] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        else:
            image = self._decoder.empty(1)[0]
            self._decoder.fill(image, data)
            self._decoded[row] = image

    def clear(self, row: int) -> None:
        self._encoded.pop(row, None)
        self._decoded.pop(row, None)

    def finish(self, count: int) -> dict[str, Any]:
        """Few tensors, as each passes to the parent process by a file of its own."""
        nothing = torch.empty(0, dtype=torch.uint8)
        return {
            "encoded": torch.cat([nothing, *self._encoded.values()]),
            "encoded_rows": list(self._encoded),
            "encoded_sizes": [len(data) for data in self._encoded.values()],
            "decoded": torch.stack(list(self._decoded.values())) if self._decoded else nothing,
            "decoded_rows": list(self._decoded),
        }


class DeviceDecoder:
    """Makes whole batches, on a device, of what EncodedDecoder has left: decodes JPEGs there, by nvJPEG, and resizes.

    Args:
        decoder: What to make of an image; it decodes those that the device does not take.
        batch_size: Of every batch.
        device: Which; the CPU too does all of this.
    """

    def __init__(self, decoder: ImageDecoder, batch_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._batch_size = batch_size
        self._beside = _Beside(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its images [B, 3, H, W] uint8; what turns out to be damaged now gets its reason."""
        own = dict(batch)
        encoded = own.pop("encoded").split(own.pop("encoded_sizes"))
        rows, decoded_rows, decoded = own.pop("encoded_rows"), own.pop("decoded_rows"), own.pop("decoded")
        reasons = own["reasons"] = list(own["reasons"])
        size = self._decoder.preprocessing.crop
        with self._beside.run():
            images = torch.zeros(self._batch_size, size, size, 3, dtype=torch.uint8, device=self._beside.device)
            images = images.permute(0, 3, 1, 2)
            if decoded_rows:
                images[decoded_rows] = decoded.to(self._beside.device, non_blocking=True)
            for row, pixels in zip(rows, self._all_pixels(encoded), strict=True):
                if isinstance(pixels, RejectedInputError):
                    reasons[row] = str(pixels)
                else:
                    images[row] = preprocess(pixels, self._decoder.preprocessing, max_pixels=self._decoder.max_pixels)
        return {**own, self._decoder.entry: self._beside.join(images)}

    def _all_pixels(self, encoded: Sequence[Tensor]) -> Iterator[Tensor | RejectedInputError]:
        """Decodes some at a time, as they take far more memory before they are resized."""
        for start in range(0, len(encoded), _AT_A_TIME):
            # Torchvision decodes on a stream of its own, and may be given memory that what was begun here still reads.
            self._beside.wait()
            yield from self._pixels(list(encoded[start : start + _AT_A_TIME]))

    def _pixels(self, encoded: list[Tensor]) -> list[Tensor | RejectedInputError]:
        """Decodes all at once; if that fails, one by one, and those that fail again on the CPU.

        Raises:
            torch.OutOfMemoryError: If there is not enough memory for it on the device.
        """
        try:
            return list(_decode(encoded, self._beside.device))
        except RuntimeError as error:
            if _OF_THE_DEVICE.search(str(error)):
                raise torch.OutOfMemoryError(str(error)) from error
            if len(encoded) > 1:
                self._beside.wait()
                return [pixels for data in encoded for pixels in self._pixels([data])]
        try:
            return [self._decoder.decode(encoded[0].numpy().tobytes()).to(self._beside.device)]
        except RejectedInputError as error:
            return [error]

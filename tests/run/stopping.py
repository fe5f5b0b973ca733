"""A backbone that is the image itself, and interrupts the run at one of its batches."""

from __future__ import annotations

import signal

from torch import Tensor, nn

from embedx.errors import Interrupted

stop_at: int | None = None
"""The number of the batch at which the next run is interrupted; it counts from 0. None interrupts none."""


class Stopping(nn.Flatten):
    def forward(self, images: Tensor) -> Tensor:
        global stop_at
        if stop_at is not None and len(images) > 1 and images.std(dim=(0, 2, 3)).any():  # no trial of one grey image
            if stop_at == 0:
                stop_at = None
                raise Interrupted(signal.SIGINT)
            stop_at -= 1
        return super().forward(images)

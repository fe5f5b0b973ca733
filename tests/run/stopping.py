"""Backbones that are the image itself: one interrupts the run at one of its batches, one takes long."""

from __future__ import annotations

import os
import signal
import time

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


class Slow(nn.Flatten):
    """Takes $SLOW_SECONDS for a batch, and adds a letter to the file $SLOW_LOG for each."""

    def forward(self, images: Tensor) -> Tensor:
        if images.std(dim=(0, 2, 3)).any():
            time.sleep(float(os.environ["SLOW_SECONDS"]))
            with open(os.environ["SLOW_LOG"], "a") as log:
                log.write(".")
        return super().forward(images)

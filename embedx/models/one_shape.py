"""Several batches at once, each computed in the shape of the forward pass."""

from __future__ import annotations

from torch import Tensor, nn


class OneShape(nn.Module):
    """Runs a model over several batches at once, one by one, as the bits of its outputs depend on a batch's shape.

    Args:
        model: The model, from a batch as the keyword `images` to tensors by name.
        batch_size: The rows of the shape.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.model = model
        self._batch_size = batch_size

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the outputs of inputs whose number is a multiple of the batch size."""
        if len(images) == self._batch_size:
            own: dict[str, Tensor] = self.model(images=images)
            return own
        outputs: dict[str, Tensor] = {}
        for start in range(0, len(images), self._batch_size):
            stop = start + self._batch_size
            for name, part in self.model(images=images[start:stop]).items():
                if not start:
                    outputs[name] = part.new_empty(len(images), *part.shape[1:])
                outputs[name][start:stop] = part  # a copy, as the next pass may overwrite it
        return outputs

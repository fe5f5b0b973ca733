"""The k-NN probe: an exact vote of the nearest neighbours, by matrix products with one batch of them at a time.

Shapes: q queries of a batch, n neighbours of a batch, D embedding dimension, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.engine.connectors import CallbackConnector, data_key, pred_key
from embedx.engine.state import Batch

VOTES = CallbackConnector({"logits": pred_key("votes"), "targets": data_key("targets")})
BATCH_ROWS = 4096
"""The largest number of queries, and of neighbours, in a batch; their similarities take 64 MiB."""


class NearestNeighbours(nn.Module):
    """Has the k rows with the largest cosine similarity vote for their classes.

    A vote weighs exp(similarity / temperature), as in Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric
    Instance Discrimination.

    Args:
        neighbours: The batches of `embeddings` [n, D] and `targets` [n], iterated once per call.
        num_classes: The number of classes, C.
        k: The number of neighbours that vote.
        temperature: The temperature of the votes' weights.
    """

    def __init__(self, neighbours: Iterable[Batch], num_classes: int, k: int, temperature: float) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.num_classes = num_classes
        self.k = k
        self.temperature = temperature

    def forward(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Maps queries [q, D] to `votes` [q, C] float64, whose rows sum up to 1."""
        queries = functional.normalize(embeddings)
        nearest = queries.new_empty(len(queries), 0)
        targets = torch.empty(len(queries), 0, dtype=torch.int64)
        for batch in self.neighbours:
            similarities = queries @ functional.normalize(batch["embeddings"]).T
            found = similarities.topk(min(self.k, similarities.shape[1]), sorted=False)
            nearest = torch.cat([nearest, found.values], dim=1)
            targets = torch.cat([targets, batch["targets"][found.indices]], dim=1)
            nearest, kept = nearest.topk(min(self.k, nearest.shape[1]))
            targets = targets.gather(1, kept)
        # Relative to the nearest neighbour's similarity, so that no weight overflows and not all underflow.
        weights = ((nearest.double() - nearest[:, :1]) / self.temperature).exp()
        votes = weights.new_zeros(len(queries), self.num_classes).scatter_add_(1, targets, weights)
        return {"votes": votes / votes.sum(dim=1, keepdim=True)}

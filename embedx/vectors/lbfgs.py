"""L-BFGS for a loss that is summed up over many batches.

torch.optim.LBFGS evaluates the loss itself, as often as its line search likes. This one is told loss and gradients of
one point a step, and says which point is the next: so a step is one pass over the data, in memory or streamed, which
a loop can make that knows nothing of it, with a checkpoint behind each. It needs no learning rate, draws nothing at
random, and knows when it has arrived.

Shapes: P weights of all parameters together, m pairs of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_SUFFICIENT = 1e-4
"""Share of the decrease promised by the slope that a step has to bring: Armijo's condition (Nocedal & Wright, 3.1)."""
_ROUNDING = 1e-14
"""Of the loss: a difference that is none, as float64 has no smaller one."""
_SHORTEST = 1e-12


class LBFGS:
    """Limited-memory BFGS with a backtracking line search (Nocedal & Wright, Numerical Optimization, 7.4 and 7.5).

    A step takes the loss and the gradients at the parameters as they are. If that point is good enough it becomes
    the one from which the next direction is taken, else the step towards it is shortened.

    It is no torch.optim.Optimizer, but has what a fit asks of one: to make one of those takes torch two seconds, of
    imports for its compiler.

    Args:
        parameters: What is optimised, float64 for an exact end.
        l2: Adds l2 / 2 * the squared norm of the parameters that have more than one dimension; biases go free.
        tolerance: The gradient's largest entry at which the search has arrived.
        history: m, pairs of past steps from which the curvature is known.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], l2: float = 0.0, tolerance: float = 1e-5, history: int = 10
    ) -> None:
        self._parameters = list(parameters)
        self.param_groups = [{"params": self._parameters}]
        self.l2 = l2
        self.tolerance = tolerance
        self.history = history
        self._own: dict[str, Any] = {}
        """The last accepted point with its loss and gradient, the way from there, and the history; empty at first."""

    @property
    def converged(self) -> bool:
        """Whether the parameters are where the search has ended."""
        return bool(self._own.get("converged", False))

    @property
    def slope(self) -> float:
        """The gradient's largest entry at the last accepted point."""
        return float(self._own["gradient"].abs().max()) if self._own else float("inf")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:
        """Moves the parameters to the next point; once converged, to none.

        Args:
            closure: Returns the loss at the parameters, whose gradients are there already.
        """
        own = self._own
        if self.converged:
            return
        point = self._flat(self._parameters)
        penalised = self._flat([p if p.ndim > 1 else torch.zeros_like(p) for p in self._parameters])
        gradient = self._flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters])
        gradient += self.l2 * penalised
        loss = float(closure()) + self.l2 / 2 * float(penalised @ penalised)
        if own:
            slack = _ROUNDING * abs(own["loss"])
            if not loss <= own["loss"] + _SUFFICIENT * own["length"] * own["descent"] + slack:
                self._shorten(loss)
                return
            self._remember(point - own["point"], gradient - own["gradient"])
        else:
            own["steps"] = own["changes"] = gradient.new_zeros(0, len(gradient))
        own.update(point=point, gradient=gradient, loss=loss)
        if self.slope <= self.tolerance:
            own["converged"] = True
            return
        own["direction"] = self._direction(gradient)
        own["descent"] = float(own["direction"] @ gradient)
        own["length"] = 1.0 if len(own["steps"]) else min(1.0, 1 / float(gradient.norm()))
        self._move(point + own["length"] * own["direction"])

    @torch.no_grad()
    def settle(self) -> None:
        """Moves the parameters back to the last accepted point, if they are beyond it."""
        if self._own:
            self._move(self._own["point"])

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dict(self._own)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what a checkpoint has kept."""
        self._own = dict(state)

    def _shorten(self, loss: float) -> None:
        """Goes a tenth to half as far: to the lowest point of the parabola through both losses and the slope."""
        own = self._own
        length, descent = own["length"], own["descent"]
        excess = loss - own["loss"] - descent * length
        best = -descent * length**2 / (2 * excess) if excess > 0 else 0.0  # NaN and infinity give 0 as well
        own["length"] = min(max(best, 0.1 * length), 0.5 * length)
        if own["length"] < _SHORTEST:  # rounding errors hide what is left to gain
            own["converged"] = True
            self._move(own["point"])
        else:
            self._move(own["point"] + own["length"] * own["direction"])

    def _remember(self, step: Tensor, change: Tensor) -> None:
        """Adds a pair to the history, unless rounding errors have made its curvature none."""
        own = self._own
        if step @ change > 1e-10 * change @ change:
            own["steps"] = torch.cat([own["steps"], step[None]])[-self.history :]
            own["changes"] = torch.cat([own["changes"], change[None]])[-self.history :]

    def _direction(self, gradient: Tensor) -> Tensor:
        """[P]: minus the inverse Hessian, as the history knows it, times the gradient (the two-loop recursion)."""
        steps, changes = self._own["steps"], self._own["changes"]
        result = -gradient
        shares = []
        for step, change in zip(steps.flip(0), changes.flip(0), strict=True):
            shares.append((step @ result) / (step @ change))
            result = result - shares[-1] * change
        if len(steps):
            result = result * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
        for step, change, share in zip(steps, changes, reversed(shares), strict=True):
            result = result + (share - (change @ result) / (step @ change)) * step
        return result

    def _move(self, point: Tensor) -> None:
        start = 0
        for parameter in self._parameters:
            parameter.copy_(point[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    @staticmethod
    def _flat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

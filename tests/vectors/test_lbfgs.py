"""L-BFGS: where it ends, how it gets there, and that it goes on from where it stood."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from embedx.vectors.lbfgs import LBFGS

pytestmark = pytest.mark.usefixtures("one_thread")


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def run(parameter: nn.Parameter, optimizer: LBFGS, loss_of, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(parameter)
        loss.backward()
        losses.append(loss.item())
        optimizer.step(lambda value=loss: value)
        if optimizer.converged:
            break
    return losses


def test_it_finds_the_end_of_a_bent_valley_in_about_as_many_evaluations_as_scipy() -> None:
    start = torch.tensor([-1.2, 1, -0.5, 2], dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    optimizer = LBFGS([parameter], tolerance=1e-8)
    losses = run(parameter, optimizer, rosenbrock, 500)
    assert optimizer.converged and optimizer.slope <= 1e-8
    torch.testing.assert_close(parameter.data, torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    reference = minimize(
        lambda x: rosenbrock(torch.tensor(x)).item(), start.numpy(), method="L-BFGS-B", options={"gtol": 1e-8}
    )
    assert len(losses) <= 2 * reference.nfev / 5  # which has no gradients, and so evaluates five times a point


def test_the_penalty_is_of_weights_and_not_of_biases() -> None:
    """Of |W - 3|^2 / 2 + |b - 3|^2 / 2 + l2 / 2 * |W|^2 the end is W = 3 / (1 + l2), b = 3."""
    weight, bias = (nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((2, 2), (2,)))
    optimizer = LBFGS([weight, bias], l2=0.5, tolerance=1e-10)
    for _ in range(50):
        optimizer.zero_grad()
        loss = ((weight - 3) ** 2).sum() / 2 + ((bias - 3) ** 2).sum() / 2
        loss.backward()
        optimizer.step(lambda value=loss: value)
    assert optimizer.converged
    torch.testing.assert_close(weight.data, torch.full((2, 2), 2.0, dtype=torch.float64))
    torch.testing.assert_close(bias.data, torch.full((2,), 3.0, dtype=torch.float64))


def test_a_step_that_went_too_far_is_shortened_until_it_does_good() -> None:
    parameter = nn.Parameter(torch.tensor([1e-3], dtype=torch.float64))
    optimizer = LBFGS([parameter], tolerance=1e-9)
    losses = run(parameter, optimizer, lambda x: (1e6 * x**2).sum(), 100)
    assert losses[1] > 1e5 * losses[0] and optimizer.converged
    assert parameter.item() == pytest.approx(0, abs=1e-12)


def test_a_loss_that_is_nan_counts_as_too_far() -> None:
    parameter = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    losses = run(parameter, LBFGS([parameter], tolerance=1e-9), lambda x: -(x.log() + (1 - x).log()).sum(), 100)
    assert math.isnan(losses[1]) and parameter.item() == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("steps", range(1, 40, 2))
def test_settling_goes_back_to_the_best_point_so_far(steps: int) -> None:
    parameter = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = LBFGS([parameter], tolerance=1e-8)
    losses = run(parameter, optimizer, rosenbrock, steps)
    optimizer.settle()
    assert rosenbrock(parameter).item() == min(losses)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_it_goes_on_from_where_it_stood_to_the_same_bits(steps: int) -> None:
    whole = nn.Parameter(torch.tensor([-1.2, 1.0, 0.3], dtype=torch.float64))
    run(whole, LBFGS([whole]), rosenbrock, 30)
    first = nn.Parameter(torch.tensor([-1.2, 1.0, 0.3], dtype=torch.float64))
    before = LBFGS([first])
    run(first, before, rosenbrock, steps)
    second = nn.Parameter(first.detach().clone())
    after = LBFGS([second])
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    run(second, after, rosenbrock, 30 - steps)
    assert torch.equal(second, whole)

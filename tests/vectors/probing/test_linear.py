"""The linear probe against scikit-learn's LogisticRegression; moments; what is held out."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from embedx.engine.state import Batch
from embedx.errors import ConfigError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.vectors.probing import linear
from embedx.vectors.probing.linear import LinearFit, choose_held_out, fit_linear
from embedx.vectors.probing.linear_head import LinearHead, SplitLoss, moments

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(rows: int = 300, dim: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Overlapping classes, features of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    rows_ = centres[targets] + torch.randn(rows, dim, generator=generator)
    return rows_ * torch.logspace(-3, 3, dim) + 100 * torch.arange(dim), targets


def slanted() -> tuple[Tensor, Tensor]:
    """The same, nearly in one plane, which takes many steps."""
    rows, targets = blobs()
    rows = (rows - rows.mean(dim=0)) / rows.std(dim=0)
    turn, _, other = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).svd()
    return rows @ (turn @ torch.diag(torch.logspace(0, -3, 6)) @ other.T), targets


def batches(rows: Tensor, targets: Tensor, size: int = 64) -> list[Batch]:
    pieces = zip(rows.split(size), targets.split(size), strict=True)
    return [{"embeddings": x, "targets": y, "index": torch.arange(len(x))} for x, y in pieces]


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_weights_are_scikit_learn_s(l2: float) -> None:
    rows, targets = blobs()
    fit = fit_linear(batches(rows, targets), 4, l2, heartbeat=SILENT)
    assert fit.converged and fit.epochs < 60
    standard = ((rows.double() - fit.head.mean) / fit.head.std).numpy()
    reference = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-9, max_iter=10_000).fit(standard, targets)
    torch.testing.assert_close(fit.head.weight.data, torch.tensor(reference.coef_), rtol=0.01, atol=1e-3)
    bias = torch.tensor(reference.intercept_)  # any constant may be added to all of them
    torch.testing.assert_close(fit.head.bias.data - fit.head.bias.data.mean(), bias - bias.mean(), rtol=0.01, atol=1e-3)


class Interrupted(list[Batch]):
    """Batches, in the middle of whose n-th pass Ctrl-C arrives."""

    def __init__(self, batches: list[Batch], passes: int) -> None:
        super().__init__(batches)
        self.left = passes

    def __iter__(self) -> Iterator[Batch]:
        self.left -= 1
        first, *others = super().__iter__()
        yield first
        if self.left == 0:
            raise KeyboardInterrupt
        yield from others


MANY = 10_000


@pytest.fixture(scope="module")
def whole() -> tuple[LinearFit, int]:
    """A fit of many epochs that nothing interrupts, and its passes over the rows."""
    rows = Interrupted(batches(*slanted()), MANY)
    return fit_linear(rows, 4, 1e-4, heartbeat=SILENT), MANY - rows.left


@pytest.mark.parametrize("passes", [3, 130])
def test_a_fit_that_was_interrupted_goes_on_to_the_same_bits(
    tmp_path: Path, whole: tuple[LinearFit, int], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_CHECKPOINT_SECONDS", 0.0)
    fit, all_passes = whole
    loader = batches(*slanted())
    assert fit.epochs > 100 and fit.metrics["train/slope"] <= 1e-5
    with pytest.raises(KeyboardInterrupt):
        fit_linear(Interrupted(loader, passes), 4, 1e-4, folder=tmp_path, heartbeat=SILENT)
    counted = Interrupted(loader, MANY)
    again = fit_linear(counted, 4, 1e-4, folder=tmp_path, resume=True, heartbeat=SILENT)
    for name, tensor in fit.head.state_dict().items():
        assert torch.equal(again.head.state_dict()[name], tensor), name
    assert (again.epochs, again.metrics, again.converged) == (fit.epochs, fit.metrics, True)
    # Besides what was left: a pass for the moments, one where it goes on, and those of the step that was cut off.
    assert MANY - counted.left <= all_passes - passes + 5


def test_a_step_takes_little_more_than_one_pass_over_the_rows(whole: tuple[LinearFit, int]) -> None:
    fit, passes = whole
    assert fit.epochs < passes < 1.2 * fit.epochs


def test_a_strong_penalty_whose_steps_are_tiny_takes_few_of_them() -> None:
    """Where the loss is a mean over rows, torch's L-BFGS takes these steps for none, and needs hundreds."""
    rows, targets = load_digits(return_X_y=True)
    fit = fit_linear(batches(torch.tensor(rows), torch.tensor(targets), 600), 10, 100.0, heartbeat=SILENT)
    assert fit.converged and fit.epochs < 60


def test_the_objective_and_its_gradients_are_those_of_all_rows_at_once() -> None:
    rows, targets = blobs()
    head = LinearHead(*moments(batches(rows, targets)), 4)
    torch.nn.init.normal_(head.weight)
    SplitLoss(head, 0.3)(batches(rows, targets))["objective"].backward()
    gradients = [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]
    head.zero_grad()
    loss = torch.nn.functional.cross_entropy(head(rows)["logits"], targets) + 0.15 * head.weight.square().sum()
    (loss * len(rows)).backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in head.parameters()])


def test_of_a_split_that_is_streamed_two_batches_are_held_at_most() -> None:
    rows, targets = blobs()
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Stream:
        def __iter__(self) -> Iterator[Batch]:
            nonlocal most
            for batch in batches(rows, targets, 10):
                embeddings = batch["embeddings"].clone()
                alive.append(weakref.ref(embeddings))
                most = max(most, sum(reference() is not None for reference in alive))
                yield {**batch, "embeddings": embeddings}

    model = SplitLoss(LinearHead(*moments(batches(rows, targets)), 4), 0.1)
    model(Stream())["objective"].backward()
    assert most == 2 and len(alive) == 30


def test_the_hooks_of_training_fire_in_a_fit() -> None:
    told = []

    class Listening(Heartbeat):
        def tell(self, line: str) -> None:
            told.append(line)

    fit_linear(batches(*slanted()), 4, 1e-4, heartbeat=Listening(Console(quiet=True)))
    numbers = r"loss 0\.\d+, top1 0\.\d+, slope [\d.e-]+, converged 0, [\d.]+ epochs/s"
    assert re.fullmatch(rf"l2 0\.0001: epoch 100, {numbers}", told[0])


def test_the_cut_into_batches_changes_nothing_but_rounding() -> None:
    rows, targets = blobs()
    one, other = (fit_linear(batches(rows, targets, size), 4, 0.01, heartbeat=SILENT).head for size in (300, 7))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-6, atol=1e-8)


def test_moments_are_exact_where_the_mean_is_far_from_zero() -> None:
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1e4, 1e5])
    rows = torch.cat([rows, torch.full((1000, 1), 0.1)], dim=1)
    mean, std = moments(batches(rows, torch.zeros(1000, dtype=torch.int64), 37))
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(std[:3], rows[:, :3].double().std(0, correction=0), rtol=1e-9, atol=0)
    assert std[3] == 1  # which does not vary, and is not to be divided by next to nothing


def test_a_head_computes_standardised_logits() -> None:
    head = LinearHead(torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 4.0]).double(), 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        head.bias.copy_(torch.tensor([0.0, 1.0]))
    assert head(torch.tensor([[3.0, 10.0]]))["logits"].tolist() == [[1.0, 3.0]]


def test_a_fifth_of_each_class_is_held_out_by_the_seed() -> None:
    targets = torch.tensor([0] * 50 + [1] * 10 + [2] * 3 + [3] * 1 + [4] * 2)[
        torch.randperm(66, generator=torch.Generator().manual_seed(0))
    ]
    held_out = choose_held_out(targets, 0)
    assert targets[held_out].bincount(minlength=5).tolist() == [10, 2, 1, 0, 1]
    assert torch.equal(held_out, choose_held_out(targets, 0)) and not torch.equal(held_out, choose_held_out(targets, 1))


def test_without_a_second_row_of_any_class_nothing_can_be_held_out() -> None:
    with pytest.raises(ConfigError, match=r"no class of the train split has a second row to hold out; .* --l2"):
        choose_held_out(torch.arange(5), 0)

"""Early stopping: when it looks, what it takes for better, and that it goes on from where it stood."""

from typing import Any

import pytest

from embedx.callbacks.early_stopping import EarlyStopping
from embedx.engine.fit import Schedule
from embedx.errors import ConfigError
from tests.callbacks.fits import Given, batches, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = {"val": batches(1)}


def epochs(stop: EarlyStopping, values: list[float]) -> int:
    """Epochs that a fit with a test after each takes."""
    schedule = Schedule(len(values), test_every=1)
    state = fit(schedule, Given(stop.monitor, values), stop, tests=TESTS)
    return state["current_epoch"] + 1


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"patience": 2}, [3, 2, 2, 1, 1, 1, 1], 6),
        ({"patience": 2, "mode": "max"}, [1, 2, 2, 1, 3, 3], 4),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.6, 1], 2),
        ({"patience": 1, "min_delta": 0.3}, [3, 2.6, 2.5, 1], 3),
        ({"threshold": 1.5}, [3, 4, 1.5, 1], 3),
        ({"threshold": 0.9, "mode": "max"}, [0.5, 0.91, 1], 2),
        ({"patience": 2}, [3, float("nan"), float("nan"), 1], 3),
        ({}, [1, 2, 3, 4], 4),
    ],
)
@pytest.mark.parametrize("monitor", ["test/loss", "train/x"])
def test_it_stops_in_time_and_not_before(
    monitor: str, options: dict[str, Any], values: list[float], expected: int
) -> None:
    assert epochs(EarlyStopping(monitor, **options), list(values)) == expected


def test_a_training_metric_can_be_looked_at_by_steps() -> None:
    given = Given("train/x", [5, 4, 4, 4, 4, 4], epoch_based=False)
    state = fit(Schedule(9), given, EarlyStopping("train/x", patience=2, epoch_based=False))
    assert state["global_step"] == 4 and state["should_stop"]


def test_a_metric_that_nobody_returns_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="EarlyStopping: unknown metric 'test/top2'; did you mean test/top1"):
        fit(Schedule(1), Given("test/top1", [1]), EarlyStopping("test/top2", patience=1), tests=TESTS)


def test_it_goes_on_waiting_from_where_it_stood() -> None:
    before = EarlyStopping("test/loss", patience=3)
    epochs(before, [1, 2, 2])
    after = EarlyStopping("test/loss", patience=3)
    after.load_state_dict(before.state_dict())
    assert (before.waited, epochs(after, [1.5, 0, 0])) == (2, 1)

"""Counts inputs without a row, and says it at once where none of a batch gives a finite row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import repeat

from torch import nn

from embedx.callbacks.finite_rows import NotFinite
from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Metrics, Outputs, TrainerState
from embedx.errors import InputError, TooManyUnavailableError
from embedx.values import Allowed, OnError


class RejectedInputs(Callback):
    """Counts rejected and unavailable inputs; the counts are the metrics `rejected` and `unavailable`.

    Args:
        on_error: The reaction to an input without a row: `reject` goes on, `fail` ends the run.
        say: The way to tell the user something at once; None tells nothing.
        unavailable: The allowed number of unavailable inputs; None allows all.
        detail: The way to tell each input without a row; None tells none.
    """

    def __init__(
        self,
        on_error: OnError = "reject",
        say: Callable[[str], None] | None = None,
        unavailable: Allowed | None = None,
        detail: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self.on_error = on_error
        self.say = say
        self.detail = detail
        self.allowed = unavailable
        self.counts: Counter[int] = Counter()
        """The rejected inputs by dataloader, without the rows that are not finite."""
        self.unavailable = 0
        self.example = ""
        """The last of the unavailable inputs, and why."""
        self.rows = 0
        self.not_finite = 0
        self._has_said = False

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Resets the counts."""
        self.counts.clear()
        self.rows = self.not_finite = self.unavailable = 0
        self._has_said = False

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch's inputs without a row.

        Raises:
            InputError: If there is one and `on_error` is `fail`; it names the input and the reason.
            TooManyUnavailableError: If more are unavailable than allowed.
        """
        passing = batch.get("unavailable") or repeat(False)
        for key, reason, is_unavailable in zip(batch["keys"], batch.get("reasons", ()), passing, strict=False):
            if reason is None:
                continue
            if self.detail is not None:
                self.detail(f"{'unavailable' if is_unavailable else 'rejected'}: {key}: {reason}")
            if is_unavailable:
                self._add_unavailable(key, reason)
            else:
                self.counts[dataloader_idx] += 1
                if self.on_error == "fail":
                    raise InputError(f"{key}: {reason}; repair or remove it, or go on without it by --on-error reject")

    def _add_unavailable(self, key: str, reason: str) -> None:
        self.unavailable += 1
        self.example = f"{key}: {reason}"
        if self.on_error == "fail":
            raise InputError(f"{key} is unavailable: {reason}; once the cause is gone, the same command goes on")
        if self.allowed is not None:
            check_unavailable(self.unavailable, self.allowed, self.example)

    def add_rows(self, rows: int, found: list[NotFinite]) -> None:
        """Counts a batch's computed rows, and those of them that are not finite.

        The first batch without a finite row is told, unless most rows before it were: the weights may be broken, or the
        type too narrow. The run goes on, as the inputs after it may be sound.

        Raises:
            InputError: If there is one and `on_error` is `fail`; it names the input and the reason.
        """
        self.rows += rows
        self.not_finite += len(found)
        if self.detail is not None:
            for row in found:
                self.detail(f"rejected: {row.key}: {row.reason}")
        if found and self.on_error == "fail":
            raise InputError(
                f"{found[0].key}: {found[0].reason}; {found[0].cause.value}, go on without it by --on-error reject, or "
                "store it as it is by --allow-nonfinite"
            )
        if 0 < rows == len(found) and 2 * self.not_finite > self.rows and self.say and not self._has_said:
            self._has_said = True
            self.say(
                f"none of {'the first ' if rows == self.rows else ''}{rows:,} rows is finite ({found[0].key}: "
                f"{found[0].reason}): {found[0].cause.value}; the run goes on and rejects such inputs"
            )

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Returns the counts."""
        return dict(self.lost())

    def lost(self) -> dict[str, int]:
        """Returns the numbers of inputs without a row so far, with the rows found not to be finite."""
        return {"rejected": self.counts.total() + self.not_finite, "unavailable": self.unavailable}


def check_unavailable(number: int, allowed: Allowed, example: str) -> None:
    """Checks that no more inputs are unavailable than allowed.

    Raises:
        TooManyUnavailableError: If more are; it names the `example`.
    """
    if number > allowed.number:
        count = "1 input is" if number == 1 else f"{number:,} inputs are"
        raise TooManyUnavailableError(
            f"{count} unavailable (such as {example}), and --max-unavailable {allowed.given} allows "
            f"{allowed.number:,} of {allowed.inputs:,}; once the cause is gone, the same command goes on "
            "from what is kept; to go on without such inputs allow more, as in --max-unavailable 100%"
        )

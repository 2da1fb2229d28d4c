"""Divergence: when a run counts as diverged, and how it goes back to a checkpoint and on with other data.

Batches are numbered by their position in the stream, which is the step as long as nothing goes wrong. After a rollback
from step s to the checkpoint of step c the run goes on with batch s + 1, not c + 1, so it does not meet the same data
again. rollbacks.json in the workdir lists the rollbacks, and so gives the position of any later step.
"""

import json
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from greenjax.errors import InputError, RunError
from greenjax.runtime.files import read_json, replace_text
from greenjax.runtime.processes import leads

REMEDY = "it says which batches were passed over; remove it, and the run takes those that its steps count"
RECENT, BEFORE = 10, 100  # updates whose losses are compared


class DivergedError(RunError):
    """Too many updates in a row were not finite, or the loss rose too far."""

    def __init__(self, message: str, step: int, since: int):
        """`step`: the last step of the run; `since`: the first step that is not to be trusted."""
        super().__init__(message)
        self.step, self.since = step, since


class Guard:
    """Raises DivergedError where the losses of the updates say that the run has diverged."""

    def __init__(self, max_skipped: int, spike: float):
        self._max_skipped, self._spike = max_skipped, spike
        self._losses: deque[float] = deque(maxlen=BEFORE + RECENT)

    def look(self, step: int, loss: float, skipped_in_a_row: int) -> None:
        """Takes the loss of a step that is done."""
        if skipped_in_a_row > self._max_skipped:
            raise DivergedError(
                f"step {step}: {skipped_in_a_row} updates in a row had a loss or gradient that is not finite (the last"
                f" loss: {loss}); optim.max_skipped allows {self._max_skipped}",
                step,
                since=step - skipped_in_a_row + 1,
            )
        if np.isfinite(loss):
            self._losses.append(loss)
        if not self._spike or len(self._losses) < BEFORE + RECENT:
            return
        losses = np.array(self._losses)
        # A median, because a run that has diverged stays there, and one hard batch among tiny losses is no divergence.
        before, now = losses[:BEFORE].mean(), np.median(losses[BEFORE:])
        if now > self._spike * before:
            raise DivergedError(
                f"step {step}: the median loss of {RECENT} updates is {now:.4g}, the mean of the {BEFORE} before"
                f" {before:.4g}; guard.spike allows {self._spike:g} times as much",
                step,
                since=step - RECENT + 1,
            )


class Rollback(NamedTuple):
    """From step `after` back to the checkpoint of step `to`."""

    after: int
    to: int
    reason: str


class Rollbacks:
    """The rollbacks of one run, kept in its workdir."""

    def __init__(self, workdir: Path):
        self._path = workdir / "rollbacks.json"
        found = read_json(self._path, list, REMEDY) if self._path.exists() else []
        try:
            self.made = [Rollback(**entry) for entry in found]
        except TypeError as error:
            raise InputError(f"{str(self._path)!r} holds no rollbacks: {REMEDY}") from error

    def skipped(self, step: int) -> int:
        """The batches by which the position in the stream is ahead of a step."""
        return sum(each.after - each.to for each in self.made if each.to <= step)

    def counts(self) -> dict[str, int]:
        """The entry in a line of metrics; none where there was no rollback."""
        return {"rollbacks": len(self.made)} if self.made else {}

    def back_to(self, step: int) -> None:
        """The run goes on from a step: batches that rollbacks to later steps passed over are passed over from here."""
        self.made = [
            each if each.to <= step else each._replace(after=each.after - each.to + step, to=step) for each in self.made
        ]

    def add(self, error: DivergedError, to: int) -> None:
        self.back_to(to)
        self.made.append(Rollback(error.step, to, str(error)))
        logging.warning("%s: back to step %d, on with other data (rollback %d)", error, to, len(self.made))
        if leads():
            replace_text(self._path, json.dumps([each._asdict() for each in self.made], indent=2) + "\n")

    def forget(self) -> None:
        """Removes all rollbacks: the run begins anew."""
        self.made = []
        if leads():
            self._path.unlink(missing_ok=True)

"""Repetition of the last epochs of a training, to check that its last checkpoint can be reproduced: `replay`."""

from __future__ import annotations

from dataclasses import replace

from fastmlp.engines.base import step_count
from fastmlp.engines.interrupts import Signals
from fastmlp.training.checkpoints.file import Checkpoint, StoredCheckpoint
from fastmlp.training.checkpoints.folder import Checkpoints
from fastmlp.training.loop import Interrupted, Loop, loop_for
from fastmlp.training.settings import Task


def replay(task: Task, before: StoredCheckpoint | None, last: StoredCheckpoint) -> Checkpoint:
    """Train from one checkpoint to the state of a later one of the same training, and return the state that was computed.

    before : the checkpoint to start from; None for the initial weights

    Raises
    ------
    ConfigError, DataError : the network, the settings or the data differ from those of the checkpoints
    Interrupted : SIGINT or SIGTERM was received
    """
    task = task._replace(settings=replace(task.settings, patience=0, max_time=None))
    epochs = len(last.checkpoint.history)
    with loop_for(task) as loop:
        Checkpoints(task, start=last).begin(loop.engine)  # checks the settings and the data
        loop.compile()
        if before is not None:
            loop.load(before.checkpoint)
        if len(loop.history) < epochs:
            with Signals() as signals:
                training = loop.run(signals, [lambda row, engine: row["epoch"] == epochs])
            if signals.received:
                raise Interrupted(training, signals.received)
        if last.checkpoint.partial is not None:
            train_until(loop, len(last.checkpoint.partial.metrics.loss))
        return loop.checkpoint()


def train_until(loop: Loop, rows: int) -> None:
    """Train on the first `rows` rows of the next epoch, or on the rest of them if this epoch has been started."""
    epoch, first = len(loop.history) + 1, 0 if loop.partial is None else len(loop.partial.metrics.loss)
    order, augmentation = loop.order(epoch)
    batch = loop.settings.batch_size
    steps = slice(first // batch, step_count(rows, batch))
    learning_rates = loop.learning_rates((epoch - 1) * step_count(len(order), batch), step_count(len(order), batch))
    loop.train_rows(order[first:rows], learning_rates[steps], augmentation and augmentation.select(first, rows))

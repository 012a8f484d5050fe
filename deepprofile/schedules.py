"""Learning rates by epoch, and when to stop: functions of the settings and of what the epochs so far were like."""

import math
from collections.abc import Sequence

from deepprofile.study import Schedule


def learning_rate(schedule: Schedule, base: float, epochs: int, val_losses: Sequence[float]) -> float:
    """The learning rate of the next epoch.

    Parameters
    ----------
    schedule : Schedule
    base : float
        `train.learning_rate`.
    epochs : int
        Of the whole training.
    val_losses : sequence of float
        The validation loss of each epoch so far, so that epoch ``len(val_losses)``, counted from 0, is the next.

    Returns
    -------
    float
        - constant: base.
        - step: the rate of the last of `steps` that has begun; base before the first.
        - cosine: ``base (1 + cos(pi epoch / epochs)) / 2`` after the warm-up, in which it is base times
          ``(epoch + 1) / warmup_epochs`` (linear) or ``1 / (warmup_epochs - epoch)`` (harmonic).
        - plateau: base times `factor` for every `patience` epochs in a row without a lower validation loss, counted
          anew after each; `minimum` at least.

    References
    ----------
    Bornholdt 2021, section 3.2; harmonic warm-up and plateau: DeepProfiler 0.3.1, learning/model.py, tf2train.py.
    """
    epoch = len(val_losses)
    if schedule.kind == "step":
        begun = [at for at in schedule.steps if at <= epoch]
        return schedule.steps[max(begun)] if begun else base
    if schedule.kind == "cosine":
        if epoch < (warm := schedule.warmup_epochs):
            return base * (epoch + 1) / warm if schedule.warmup == "linear" else base / (warm - epoch)
        return base * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    rate = base
    if schedule.kind == "plateau":
        best, waited = math.inf, 0
        for loss in val_losses:
            best, waited = (loss, 0) if loss < best else (best, waited + 1)
            if waited == schedule.patience:
                rate, waited = max(rate * schedule.factor, min(schedule.minimum, base)), 0
    return rate


def best_epoch(val_accuracies: Sequence[float]) -> int:
    """The epoch, from 0, of the highest validation accuracy, the first of equals."""
    return max(range(len(val_accuracies)), key=lambda epoch: (val_accuracies[epoch], -epoch))


def is_over(epochs: int, patience: int | None, val_accuracies: Sequence[float]) -> bool:
    """Whether all epochs are done, or `patience` of them went by without a higher validation accuracy."""
    done = len(val_accuracies)
    return done >= epochs or (patience is not None and done > 0 and done - 1 - best_epoch(val_accuracies) >= patience)

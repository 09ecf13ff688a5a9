"""A learning-rate range test with the settings of a training run: `run_range_test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmlp.engines.cpu.codegen.observer import observer
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.learning_rate import RangeTestConfig
from fastmlp.experiments.plan import Say, make_plan
from fastmlp.files.reading import exists
from fastmlp.reports.style import load_matplotlib, own_style, save
from fastmlp.reports.text import short_name
from fastmlp.training.learning_rate import range_test
from fastmlp.training.progress import COMPILING


def run_range_test(
    config: RangeTestConfig,
    out: str | None = None,
    *,
    force: bool = False,
    quiet: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Perform the learning-rate range test on the training split, and plot its losses.

    Parameters
    ----------
    config : the settings
    out : PNG file of the figure; None for no figure
    force : whether `out` is replaced if it exists
    quiet : if true, a download shows no progress on stderr
    say : function that is called with each status message

    Returns
    -------
    dict : `data`, `network` and `optimizer` as text; `suggestion`; `learning_rates`, `losses` and `smoothed`, see
        `training.learning_rate.LearningRateCurve`; `out`

    Raises
    ------
    FastMLPError : settings or data cannot be used, `out` exists and `force` is false, or there is no suggestion

    Examples
    --------
    >>> result = run_range_test(RangeTestConfig(hidden=(16,), backend="numpy"))
    >>> result["network"], 0.0001 < result["suggestion"] < 0.1
    ('784x16x10', True)
    """
    if out is not None and not force and exists(Path(out)):
        raise ConfigError(f"out: {out} exists; choose another name, or set force to replace it", settings=("out", "force"))
    plan = make_plan(config, progress=not quiet)
    name, label = plan.data.name, plan.network.label
    say(f"{name}: {len(plan.splits['train']):,} train rows; network {label}, {plan.network.parameters:,} parameters")
    if out is not None:
        load_matplotlib()  # before the training, for its errors
    with observer(lambda: say(COMPILING)):
        curve = range_test(plan.task, config.start, config.end, config.steps)
    tested = f"{len(curve.losses)} of {config.steps} mini-batches, learning rates up to {curve.learning_rates[-1]:.3g}"
    say(tested if out is None else f"{tested}: {out}")
    if out is not None:
        with own_style():
            save(curve.plot(f"Learning-rate range test: {short_name(name)}, {label}, {config.optimizer}"), out)
    values = {key: getattr(curve, key).tolist() for key in ("learning_rates", "losses", "smoothed")}
    described = {"data": name, "network": label, "optimizer": config.optimizer}
    return {**described, "suggestion": curve.suggestion, **values, "out": out}

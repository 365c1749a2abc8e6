"""Pictures of a sweep: how much each choice mattered, and which choices go with which score."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from vosforge.storage import join, write_bytes

IMPORTANCE, PARALLEL = "importance.png", "parallel-coordinates.png"
# Of fewer trials no importance can be told.
_FEWEST = 3
ABSENT = "without effect"
_SEED = 0


def draw_sweep(trials: list[dict[str, Any]], metric: str, folder: str) -> list[str]:
    """Write the pictures of a sweep.

    Args:
        trials: as `run_sweep` returns them.
        metric: by which they are compared.
        folder: path or `s3://` URI for the PNG files.

    Returns:
        URIs of the files; importance is left out where fewer than three trials have a score, or no choice varies.
    """
    scored, at = comparable([trial for trial in trials if trial[metric] is not None], metric)
    columns = varied(scored)
    if not columns:
        return []
    label = metric if at is None else f"{metric} at step {at}"
    drawn = [_write(_parallel(columns, [trial[metric] for trial in scored], label), join(folder, PARALLEL))]
    shares = importance(scored, metric)
    if shares:
        drawn.append(_write(_bars(shares, len(scored), label), join(folder, IMPORTANCE)))
    return drawn


def comparable(trials: list[dict[str, Any]], metric: str) -> tuple[list[dict[str, Any]], int | None]:
    """Trials with their scores after equally many steps: those that were stopped early were not worse for it.

    Args:
        trials: with a score each, and `{"step", metric}` of their rungs.
        metric: that is compared.

    Returns:
        The trials with the score of the last rung that all have reached, and its step; as they are, and None, where
        they share none.
    """
    rungs = [{rung["step"]: rung[metric] for rung in trial["rungs"]} for trial in trials]
    shared = set.intersection(*map(set, rungs)) if rungs else set()
    if not shared:
        return trials, None
    at = max(shared)
    return [{**trial, metric: scores[at]} for trial, scores in zip(trials, rungs, strict=True)], at


def varied(trials: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The choices that differ between trials: by key, each trial's value.

    Numbers stay numbers; others are text, as is a column in which some trials have no such choice.
    """
    keys = dict.fromkeys(key for trial in trials for key in trial["config"])
    columns = {key: [trial["config"].get(key, ABSENT) for trial in trials] for key in keys}
    columns = {key: values if all(map(_is_number, values)) else [_text(v) for v in values]
               for key, values in columns.items()}  # fmt: skip
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def importance(trials: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """Each choice's share of the variance of scores, by functional ANOVA on a random forest; they sum to 1.

    Empty for fewer than three trials, or where no choice varies or no score differs.
    """
    columns, scores = varied(trials), [trial[metric] for trial in trials]
    if len(trials) < _FEWEST or not columns or len(set(scores)) < 2:
        return {}
    # Its forests come from scikit-learn, for which a sweep need not wait at its start.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions = {key: _distribution(values) for key, values in columns.items()}
    study = optuna.create_study(direction="maximize")
    for i, score in enumerate(scores):
        params = {key: values[i] for key, values in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=_SEED))


def _distribution(values: list[Any]) -> BaseDistribution:
    if isinstance(values[0], str):
        return CategoricalDistribution(sorted(set(values)))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=_is_logarithmic(values))


def _is_logarithmic(values: list[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 4


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _bars(shares: dict[str, float], trials: int, label: str) -> Figure:
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(shares)), layout="constrained")
    axes = figure.subplots()
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color="tab:blue")
    axes.set_xlabel(f"share of the variance of {label} over {trials} trials (fANOVA)")
    axes.set_xlim(0, 1)
    return figure


def _parallel(columns: dict[str, list[Any]], measured: list[float], label: str) -> Figure:
    """One axis a choice, the score last; one line a trial, coloured by score."""
    axes_of = {**columns, label: measured}
    figure = Figure(figsize=(1.5 + 1.7 * len(axes_of), 4.5), layout="constrained")
    axes = figure.subplots()
    scores = np.array(measured)
    colours = matplotlib.colormaps["viridis"]((scores - scores.min()) / (np.ptp(scores) or 1))
    heights = np.array([_heights(values) for values in axes_of.values()])
    for line, colour in zip(heights.T, colours, strict=True):
        axes.plot(range(len(axes_of)), line, color=colour, marker="o", markersize=4, alpha=0.85)
    for x, values in enumerate(axes_of.values()):
        axes.axvline(x, color="0.8", zorder=0)
        for height, label in _ticks(values):
            axes.annotate(label, (x, height), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(axes_of)), [name.replace(".", ".\n") for name in axes_of])
    axes.set_yticks([])
    axes.set_ylim(-0.08, 1.12)
    axes.set_xlim(-0.2, len(axes_of) - 0.4)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return figure


def _heights(values: list[Any]) -> list[float]:
    """Places in [0, 1] on an axis."""
    if isinstance(values[0], str):
        places = sorted(set(values))
        return [places.index(value) / max(1, len(places) - 1) for value in values]
    numbers = np.log(values) if _is_logarithmic(values) else np.array(values, float)
    return list((numbers - numbers.min()) / (np.ptp(numbers) or 1))


def _ticks(values: list[Any]) -> list[tuple[float, str]]:
    heights = dict(zip(_heights(values), values, strict=True))
    shown = heights if isinstance(values[0], str) else {end: heights[end] for end in (min(heights), max(heights))}
    return [(height, _text(value)) for height, value in shown.items()]


def _write(figure: Figure, uri: str) -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_bytes(uri, png.getvalue())
    return uri

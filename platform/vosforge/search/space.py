"""What a trial's choices mean: parts of the network, settings of stages, and how often a frame is kept at test."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vosforge import networks
from vosforge.errors import UserError
from vosforge.networks import preset
from vosforge.networks.parts import Parts, choose, effective
from vosforge.storage import canonical, download_file
from vosforge.training.plan import TrainingPlan
from vosforge.training.stages import Stage

CHOICES = "choices"
"""Under which Ray Tune's configuration of a trial has its choices."""
MEMORY_EVERY = "memory_every"
DEFAULT_EVERY = 5
"""`memory_every` where a space has none."""
TIMES, LAST = "times", "last"
# What identifies a stage, decides what it is mixed from, or moves the steps at which trials are compared.
_FIXED = ("name", "kinds", "also", "steps")

# Settings that do nothing unless others, or parts, have the values that bring them in.
_IDLE: dict[str, Callable[[Stage, Parts], bool]] = {
    "momentum": lambda stage, parts: stage.optimizer != "sgd",
    "loss.hardest_between": lambda stage, parts: stage.loss.hardest == 1,
    "loss.quality": lambda stage, parts: getattr(parts, "quality", "none") == "none",
    "corruption.side": lambda stage, parts: not stage.corruption.swap,
    "corruption.radius": lambda stage, parts: not stage.corruption.morph,
}


def check_space(plan: TrainingPlan, space: dict[str, Any]) -> None:
    """Refuse a search space that varies nothing or something unknown.

    Raises:
        UserError: listing what can be varied.
    """
    if not space:
        raise UserError(f"search space: expected some of {_known(plan)}; found nothing")
    for key in space:
        if key != MEMORY_EVERY and key not in part_names(plan):
            _stages_and_path(plan, key)


def part_names(plan: TrainingPlan) -> set[str]:
    """The parts of the plan's network that can be chosen."""
    return {field.name for field in fields(preset(plan.network, plan.size))}


def _known(plan: TrainingPlan) -> str:
    own = [field.name for field in fields(Stage) if field.name not in _FIXED]
    return ", ".join([*own, MEMORY_EVERY, *sorted(part_names(plan))])


def _stages_and_path(plan: TrainingPlan, key: str) -> tuple[list[int], list[str], bool]:
    """Which stages a key speaks of, the path of the field in them, and whether its value is a factor."""
    path = key.split(".")
    times = path[0] == TIMES
    path = path[times:]
    named = [i for i, stage in enumerate(plan.stages) if stage.name == path[0]] if path else []
    named = [len(plan.stages) - 1] if path and path[0] == LAST else named
    path = path[bool(named) :]
    value: Any = plan.stages[0]
    for depth, name in enumerate(path):
        there = [field.name for field in fields(value)] if is_dataclass(value) else []
        if name not in there or (depth == 0 and name in _FIXED):
            path = []
            break
        value = getattr(value, name)
    if not path or is_dataclass(value):
        raise UserError(
            f"search space: expected some of {_known(plan)}; found {key!r}; fields of fields are written "
            f"sampling.crop, those of one stage {plan.stages[-1].name}.learning_rate or last.learning_rate, factors "
            f"times.learning_rate"
        )
    return named or list(range(len(plan.stages))), path, times


def first_stage(plan: TrainingPlan, key: str) -> int:
    """Index of the first stage whose training a key changes; the number of stages where it changes none."""
    if key == MEMORY_EVERY:
        return len(plan.stages)
    return 0 if key in part_names(plan) else min(_stages_and_path(plan, key)[0])


def is_setting(plan: TrainingPlan, key: str) -> bool:
    """Whether a key is a setting of stages, which may change while a trial trains."""
    return key != MEMORY_EVERY and key not in part_names(plan)


def vary(plan: TrainingPlan, config: dict[str, Any], name: str) -> TrainingPlan:
    """The plan with a trial's choices; `memory_every` is none of training's.

    Args:
        plan: that is varied.
        config: parts of the network by name; settings of every stage, as `learning_rate` and `sampling.crop`, or of
            one, as `videos.learning_rate` or `last.learning_rate`; after `times.`, a factor on each stage's own value.
            A crop may be given as one number for both sides, and gaps as the one that holds throughout.
        name: of the trial's run.

    Raises:
        UserError: for values that a stage or part cannot have.
    """
    parts = {key: _tuples(value) for key, value in config.items() if key in part_names(plan)}
    stages = list(plan.stages)
    for key, value in config.items():
        if not is_setting(plan, key):
            continue
        chosen, path, times = _stages_and_path(plan, key)
        for i in chosen:
            stages[i] = _with(stages[i], path, value, times)
    return replace(plan, name=name, parts={**plan.parts, **parts}, stages=stages)


def _with(holder: Any, path: list[str], value: Any, times: bool) -> Any:
    """A dataclass with the field at a path changed."""
    name, *rest = path
    old = getattr(holder, name)
    if rest:
        return replace(holder, **{name: _with(old, rest, value, times)})
    return replace(holder, **{name: _scaled(old, value) if times else _fitted(name, value)})


def _fitted(name: str, value: Any) -> Any:
    if name == "crop" and isinstance(value, int):
        return (value, value)
    if name == "gaps" and isinstance(value, int):
        return ((0.0, value),)
    return _tuples(value)


def _scaled(old: Any, factor: float) -> Any:
    if isinstance(old, tuple):
        return tuple(_scaled(value, factor) for value in old)
    return max(1, round(old * factor)) if isinstance(old, int) else old * factor


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def settle(plan: TrainingPlan, config: dict[str, Any]) -> dict[str, Any]:
    """The choices that make a difference.

    Args:
        plan: that is varied.
        config: as in `vary`.

    Returns:
        The config without choices that others leave without effect, as `top_k` beside `reader="dense"`.

    Raises:
        UserError: for parts that do not go together, or values that a stage or part cannot have.
    """
    if type(every := config.get(MEMORY_EVERY, 1)) is not int or every < 1:
        raise UserError(f"memory_every must be a whole number from 1, found {every!r}")
    base = choose(preset(plan.network, plan.size), **plan.parts)
    known = part_names(plan)
    parts = effective(base, {key: _tuples(value) for key, value in config.items() if key in known})
    chosen = choose(base, **parts)
    settings = {key: value for key, value in config.items() if key not in known}
    varied = vary(plan, {**parts, **settings}, plan.name)
    kept = {key: value for key, value in settings.items() if not _is_idle(varied, key, chosen)}
    return {**parts, **kept}


def _is_idle(plan: TrainingPlan, key: str, parts: Parts) -> bool:
    if not is_setting(plan, key):
        return False
    stages, path, _ = _stages_and_path(plan, key)
    idle = _IDLE.get(".".join(path))
    return idle is not None and all(idle(plan.stages[i], parts) for i in stages)


def check_network(plan: TrainingPlan) -> None:
    """Build a plan's network once, and fill it from the initial file, where it has one.

    Raises:
        UserError: for a backbone that does not exist or suit, or a file that does not fit.
    """
    network = plan.build_network(fresh=False)
    if plan.initial is not None:
        networks.load_weights(network, _fetched(plan.initial)[0])


@lru_cache(maxsize=1)
def _fetched(uri: str) -> tuple[Path, tempfile.TemporaryDirectory]:
    """A file as it is here, copied once for all configurations where it is elsewhere, and what holds the copy."""
    folder = tempfile.TemporaryDirectory(prefix="vosforge-")
    return download_file(uri, Path(folder.name) / "initial.safetensors"), folder


def identity(plan: TrainingPlan, config: dict[str, Any]) -> str:
    """Digest of what a config, as `settle` left it, makes of the plan: equal for trials that would be the same."""
    varied = vary(plan, config, plan.name)
    parts = choose(preset(plan.network, plan.size), **varied.parts)
    content = [asdict(parts), [asdict(stage) for stage in varied.stages], config.get(MEMORY_EVERY)]
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]

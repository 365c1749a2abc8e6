"""Which configurations a sweep tries: drawn, enumerated or proposed by Optuna, and none that could not run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform

from vosforge.errors import UserError
from vosforge.search.space import CHOICES, check_network, identity, settle, vary
from vosforge.storage import exists, read_bytes, write_bytes
from vosforge.training.plan import TrainingPlan

# Points of a range in a grid, and configurations looked at for each trial before the space counts as used up.
_GRID_POINTS = 3
_TRIES = 50


class Sieve:
    """Lets configurations through that can run and were not tried before, each without what has no effect.

    Args:
        plan: that configurations vary.
        notes: URI of a file of those that are refused, for a sweep that is restored; None keeps none.

    Attributes:
        refused: configurations that were not let through, with the reason.
    """

    def __init__(self, plan: TrainingPlan, notes: str | None = None):
        self.plan, self.notes = plan, notes
        self.refused: list[tuple[dict[str, Any], str]] = []
        self._seen: set[str] = set()
        self._noted = dict.fromkeys(map(_line, noted(notes) if notes else ()))

    def sift(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The configuration as a trial should have it; None for one that is refused."""
        try:
            settled = settle(self.plan, config)
            name = identity(self.plan, settled)
            if name in self._seen:
                raise UserError("tried before")
            self._seen.add(name)
            check_network(vary(self.plan, settled, self.plan.name))
        except UserError as error:
            self.refused.append((config, str(error)))
            line = _line((config, str(error)))
            if self.notes is not None and line not in self._noted:
                self._noted[line] = None
                write_bytes(self.notes, "".join(self._noted).encode())
            return None
        return settled


def _line(refused: tuple[dict[str, Any], str]) -> str:
    return f"{json.dumps(refused)}\n"


def noted(notes: str) -> list[tuple[dict[str, Any], str]]:
    """What sieves wrote into a file, each once: a sweep that is restored lists its configurations again."""
    return [tuple(json.loads(line)) for line in read_bytes(notes).splitlines()] if exists(notes) else []


class SiftedOptuna(OptunaSearch):
    """Optuna's proposals, asked for again where one cannot run or was tried before."""

    def __init__(self, sieve: Sieve, space: dict[str, Any], metric: str, seed: int):
        self.sieve = sieve
        self._constants = {key: value for key, value in space.items() if not isinstance(value, Domain)}
        varied = {key: value for key, value in space.items() if isinstance(value, Domain)}
        # Optuna chooses among plain values alone; of others it gets the numbers.
        self._values = {key: domain.categories for key, domain in varied.items() if _has_tuples(domain)}
        varied |= {key: tune.choice(range(len(values))) for key, values in self._values.items()}
        super().__init__(self.convert_search_space(varied), metric=metric, mode="max", seed=seed)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The choices of the next trial; FINISHED when the space seems to be used up."""
        for _ in range(_TRIES):
            proposed = super().suggest(trial_id)
            proposed |= {key: values[proposed[key]] for key, values in self._values.items()}
            settled = self.sieve.sift({**self._constants, **proposed})
            if settled is not None:
                return {CHOICES: settled}
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        return Searcher.FINISHED


def _has_tuples(domain: Any) -> bool:
    return isinstance(domain, Categorical) and any(isinstance(value, tuple | list) for value in domain.categories)


def listed(sieve: Sieve, space: dict[str, Any], search: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """Configurations that are known before the first trial runs.

    Args:
        sieve: decides which can run.
        space: Ray Tune's domains, or values, by key.
        search: "random" draws, "grid" takes all combinations in an order that follows from the seed, of a range its
            ends and the middle.
        trials: most configurations.
        seed: of the order.

    Returns:
        At most `trials` configurations; fewer when the space has no more.
    """
    proposals = _grid(space, seed) if search == "grid" else _draws(space, seed, _TRIES * trials)
    found = []
    for proposal in proposals:
        settled = sieve.sift(proposal)
        if settled is not None:
            found.append(settled)
        if len(found) == trials:
            break
    return found


def _draws(space: dict[str, Any], seed: int, count: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {key: _plain(value.sample(random_state=rng)) if isinstance(value, Domain) else value
               for key, value in space.items()}  # fmt: skip


def _grid(space: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    values = {key: points(domain) for key, domain in space.items()}
    total = math.prod(len(found) for found in values.values())
    for number in _permuted(total, seed):
        config = {}
        for key, found in values.items():
            number, place = divmod(number, len(found))
            config[key] = found[place]
        yield config


def _permuted(count: int, seed: int) -> Iterator[int]:
    """The numbers below `count` in an order without pattern, without holding them all."""
    rng = np.random.default_rng(seed)
    stride = int(rng.integers(1, max(2, count)))
    while math.gcd(stride, count) != 1:
        stride += 1
    first = int(rng.integers(count))
    return ((first + i * stride) % count for i in range(count))


def points(domain: Any) -> list[Any]:
    """The values of a domain that a grid takes: all of a choice, ends and middle of a range.

    Raises:
        UserError: for a domain of another kind.
    """
    if not isinstance(domain, Domain):
        return [domain]
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer) and domain.upper - domain.lower <= _GRID_POINTS:
        return list(range(domain.lower, domain.upper))
    if not isinstance(domain, Float | Integer) or not math.isfinite(domain.lower + domain.upper):
        raise UserError(f"search space: a grid takes choices and ranges with two ends, found {domain}")
    low, high = domain.lower, domain.upper - isinstance(domain, Integer)
    spaced = np.geomspace if isinstance(domain.get_sampler(), LogUniform) else np.linspace
    return list(dict.fromkeys(domain.cast(value) for value in spaced(low, high, _GRID_POINTS)))


def is_discrete(domain: Any) -> bool:
    """Whether a domain has a few values, rather than a range of them."""
    return not isinstance(domain, Float)


def _plain(value: Any) -> Any:
    """A value without NumPy's types, which JSON does not know."""
    return value.item() if isinstance(value, np.generic) else value


def bounds(domain: Any) -> tuple[float, float] | None:
    """The ends of a range; None for a choice."""
    if isinstance(domain, Float | Integer):
        return domain.lower, domain.upper - isinstance(domain, Integer)
    return None


def described(domain: Any) -> Any:
    """A domain of Ray Tune, or a plain value, as JSON."""
    if not isinstance(domain, Domain):
        return domain
    values = {key: value for key, value in vars(domain).items() if isinstance(value, int | float | str | list | tuple)}
    return {"kind": type(domain).__name__, "sampler": type(domain.sampler).__name__, **values}


def quiet() -> None:
    """Keep Optuna's and Tune's own messages off the terminal: what became of trials is told by the sweep."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)

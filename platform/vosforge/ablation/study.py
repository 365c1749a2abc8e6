"""A study: an ablation's rows and seeds as the runs and measurements that they need, each done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from vosforge.ablation.measuring import Measurement, TruthSource
from vosforge.ablation.tables import Row, Table, Trained
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.storage import absolute, canonical, join, local_path
from vosforge.training import curricula
from vosforge.training.chains import chain
from vosforge.training.checkpoints import NETWORK_FILE
from vosforge.training.clip_order import dataset_names
from vosforge.training.plan import TrainingPlan
from vosforge.training.stages import Corruption, Stage

Place = tuple[int, int, int, int]
"""Table, row, seed and set of videos, each by its number."""


@dataclass(frozen=True)
class Study:
    """What is ablated, on what, and how often.

    Attributes:
        tables: of the paper.
        size: nano, small or paper.
        data: URIs of shards to train on.
        truths: sets of videos to measure on; no network trains on them.
        storage: local folder or `s3://` URI of runs.
        seeds: of weights and clips; one training each.
        stages: of the curriculum; None takes those of the paper.
        numbers: fields of all stages that are set anew, such as `steps`.
        crop: height and width of training clips; None keeps the curriculum's.
        protocol, short_side: of measuring.
        device: where networks are measured.
    """

    tables: tuple[Table, ...]
    size: str
    data: tuple[str, ...]
    truths: tuple[TruthSource, ...]
    storage: str
    seeds: tuple[int, ...] = (0, 1, 2)
    stages: tuple[str, ...] | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    crop: int | None = None
    protocol: str = "davis2017"
    short_side: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds: expected some, each once, found {' '.join(map(str, self.seeds)) or 'none'}")
        if not self.truths:
            raise UserError("--truth: expected at least one set of videos to measure on, found none")

    @property
    def runs(self) -> str:
        """Where trained networks lie; studies of one storage share them."""
        return join(self.storage, "stages")

    @property
    def scores(self) -> str:
        """Where measurements lie."""
        return join(self.storage, "scores")

    def plan(self, what: Trained, table: Table, seed: int) -> TrainingPlan:
        """The training of one network with one seed."""
        names = list(self.stages or table.stages)
        stages = [self._stage(stage, what) for stage in curricula.stages(what.network, self.size, names)]
        spoilt = curricula.PAPER["skn"].stages["videos"].corruption if what.adversarial else Corruption()
        stages[-1] = replace(stages[-1], corruption=spoilt)
        return TrainingPlan(
            name="ablation",
            network=what.network,
            size=self.size,
            stages=stages,
            data=list(self.data),
            parts=what.parts,
            seed=seed,
        )

    @cached_property
    def _datasets(self) -> set[str]:
        return dataset_names([ShardSet(uri) for uri in self.data])

    def _stage(self, stage: Stage, what: Trained) -> Stage:
        repeats = tuple(pair for pair in stage.repeats if pair[0].lower() in self._datasets)
        sampling = stage.sampling if self.crop is None else replace(stage.sampling, crop=(self.crop, self.crop))
        changed = replace(stage, repeats=repeats, sampling=sampling, corruption=Corruption(), **self.numbers)
        return replace(changed, learning_rate=changed.learning_rate * what.rate)


@dataclass
class Needs:
    """What a study needs: runs by name with the one that each starts from, and measurements by name.

    Attributes:
        runs: run -> plan of one stage.
        after: run -> the run before it, None for the first of a chain.
        measurements: measurement -> what it is.
        members: measurement -> the runs whose networks it takes.
        places: measurement -> where its scores stand.
        wanted: steps that trainings would take if nothing were shared.
    """

    runs: dict[str, TrainingPlan] = field(default_factory=dict)
    after: dict[str, str | None] = field(default_factory=dict)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    wanted: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of all runs."""
        return sum(plan.total_steps for plan in self.runs.values())


def needs(study: Study) -> Needs:
    """Every run and measurement of a study, each once.

    Raises:
        UserError: when a stage has no data, a set of videos cannot be read, or is trained on.
    """
    found = Needs()
    trained_on = {ShardSet(uri).digest: uri for uri in study.data}
    for truth in study.truths:
        if truth.sharded and (uri := trained_on.get(ShardSet(truth.uri).digest)):
            raise UserError(
                f"--truth {truth.uri}: expected videos that nothing is trained on, found those of --data {uri}"
            )
    truths = [_identity(truth) for truth in study.truths]
    for t, table in enumerate(study.tables):
        for r, row in enumerate(table.rows):
            for s, seed in enumerate(study.seeds):
                chains = [_add_chain(found, study, table, member, seed) for member in row.members]
                for v, identity in enumerate(truths):
                    _add_measurement(found, study, row, chains, seed, v, identity, (t, r, s, v))
    return found


def _add_chain(found: Needs, study: Study, table: Table, member: Trained, seed: int) -> list[TrainingPlan]:
    plan = study.plan(member, table, seed)
    links = chain(plan, study.runs)
    found.wanted += plan.total_steps
    for before, link in zip([None, *links], links, strict=False):
        if link.name not in found.runs:
            if not any(plan.stages == link.stages for plan in found.runs.values()):
                link.samplers()
            found.runs[link.name] = link
            found.after[link.name] = before.name if before else None
    return links


def _add_measurement(
    found: Needs,
    study: Study,
    row: Row,
    chains: list[list[TrainingPlan]],
    seed: int,
    truth: int,
    identity: Any,
    place: Place,
) -> None:
    last = [links[-1] for links in chains]
    how = {"test_parts": row.test_parts, "settings": asdict(row.settings), "merging": row.merging}
    stage = last[0].stages[-1]
    stacked = {"stage": asdict(stage), "seed": seed} if row.merging == "stacking" else {}
    content = {**how, **stacked, "members": [plan.name for plan in last], "truth": identity}
    content |= {"protocol": study.protocol, "short_side": study.short_side}
    name = hashlib.sha256(canonical(json.loads(json.dumps(content))).encode()).hexdigest()[:16]
    found.places.setdefault(name, []).append(place)
    found.members[name] = [plan.name for plan in last]
    found.measurements[name] = Measurement(
        name,
        tuple(join(study.runs, plan.name, NETWORK_FILE) for plan in last),
        row.test_parts,
        row.settings,
        row.merging,
        study.truths[truth],
        study.protocol,
        study.short_side,
        stage,
        study.data,
        seed,
        study.device,
    )


def _identity(truth: TruthSource) -> Any:
    """What tells one set of videos from another."""
    if truth.sharded:
        return [ShardSet(truth.uri).digest, truth.limit]
    folder = local_path(truth.uri)
    files = [[str(path.relative_to(folder)), path.stat().st_size] for path in sorted(folder.rglob("*.png"))]
    return [absolute(truth.uri), truth.split, truth.open().names, files]


def perform(
    found: Needs,
    train: Callable[[TrainingPlan], Future[Any]],
    measure: Callable[[Measurement], Future[dict[str, Any]]],
    on_done: Callable[[str, str | None], None] = lambda name, reason: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Do everything as soon as what it needs is done; what fails costs only those that need it.

    Args:
        found: of a study.
        train: starts a run.
        measure: starts a measurement.
        on_done: hears the name of a run or measurement that is done, or failed with that reason.

    Returns:
        Scores by measurement; and name -> reason of the runs and measurements that failed.

    Raises:
        UserError: when a process died.
    """
    waiting = {**{n: [b] if b else [] for n, b in found.after.items()}, **found.members}
    scores: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    finished: set[str] = set()
    under_way: dict[Future[Any], str] = {}
    while waiting or under_way:
        for name, before in list(waiting.items()):
            if lost := [b for b in before if b in failed]:
                failed[name] = failed[lost[0]]
                on_done(name, failed[name])
            elif not finished.issuperset(before):
                continue
            elif name in found.runs:
                under_way[train(found.runs[name])] = name
            else:
                under_way[measure(found.measurements[name])] = name
            del waiting[name]
        done, _ = wait(under_way, return_when=FIRST_COMPLETED) if under_way else (set(), None)
        for future in done:
            name = under_way.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise UserError("a process died, most often because memory ran out; lower --at-once") from error
            except (UserError, RuntimeError) as error:
                failed[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            else:
                finished.add(name)
                if name in found.measurements:
                    scores[name] = result
            on_done(name, failed.get(name))
    return scores, failed

"""Trials: Ray Tune varies a training plan, Ray Train fits each variant, a validation set scores it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain
from ray.util.queue import Queue

from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation.running import Truth, evaluate
from vosforge.networks import preset
from vosforge.networks.parts import hints
from vosforge.propagation import Model, segment_clip
from vosforge.search.members import METRIC, RESULTS_FILE
from vosforge.storage import absolute, claim, exists, is_local, join, local_path, read_bytes, write_bytes
from vosforge.training.on_ray import Listener, fit
from vosforge.training.plan import TrainingPlan
from vosforge.training.stages import Stage


@dataclass(frozen=True)
class Sweep:
    """What every trial of a sweep shares.

    Attributes:
        name: of the sweep; with the storage it identifies it.
        plan: the training plan that trials vary.
        validation: URI of the shards that score a trial; no trial trains on them.
        storage: local folder of runs.
        trials: how many.
        concurrency: trials at a time; each needs two CPUs.
        threads: torch's threads in each trial.
        seed: of the searcher.
    """

    name: str
    plan: TrainingPlan
    validation: str
    storage: str
    trials: int
    concurrency: int = 2
    threads: int = 1
    seed: int = 0


def run_sweep(
    sweep: Sweep, space: dict[str, Any], on_progress: Callable[[dict[str, Any]], None] = lambda news: None
) -> list[dict[str, Any]]:
    """Run the trials, or what is left of a sweep that was stopped.

    Args:
        sweep: what trials share.
        space: Ray Tune's search space; each key is a field of `Stage`, for all stages, or a part of the network.
        on_progress: hears `{"trial", "step", "loss", ...}` of every training step of every trial, and once the
            `{"trial", "config", "JF_mean"}` of each that is finished.

    Returns:
        Trials, best first: `{"trial", "config", "JF_mean", "J_mean", "F_mean", "network", "error"}`. A trial that
        failed has its error and no score. The list is also written to `trials.json`.

    Raises:
        UserError: for an empty space, a key that is neither, a sweep of this name with other settings, or when all
            trials failed.
    """
    check_space(sweep.plan, space)
    if not is_local(sweep.storage):
        raise UserError(f"sweep {sweep.name}: --storage must be a local folder, found {sweep.storage}")
    sweep = replace(sweep, storage=absolute(sweep.storage), validation=absolute(sweep.validation))
    results = join(sweep.storage, sweep.name, RESULTS_FILE)
    _claim(sweep, space)
    if exists(results):
        return json.loads(read_bytes(results))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tune's newer output prints its settings at every verbosity; progress is told by `on_progress`.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    queue = Queue(actor_options={"num_cpus": 0})
    with Listener(queue, on_progress):
        grid = _tuner(sweep, space, queue).fit()
    found = sorted((_result(result) for result in grid), key=_rank)
    unfinished = [trial for trial in found if trial[METRIC] is None and not trial["error"]]
    if len(found) < sweep.trials or unfinished:
        # Tune takes Ctrl-C for itself, saves its state and returns what there is.
        raise KeyboardInterrupt
    if all(trial["error"] for trial in found):
        raise UserError(f"sweep {sweep.name}: every trial failed; the first: {found[0]['error']}")
    write_bytes(results, json.dumps(found, indent=1).encode())
    return found


def check_space(plan: TrainingPlan, space: dict[str, Any]) -> None:
    """Refuse a search space that varies nothing or something unknown.

    Raises:
        UserError: listing what can be varied.
    """
    known = [f.name for f in fields(Stage) if f.name not in ("name", "kinds", "also")] + list(_parts(plan))
    unknown = [key for key in space if key not in known]
    if unknown or not space:
        found = repr(unknown[0]) if unknown else "nothing"
        raise UserError(f"search space: expected some of {', '.join(known)}; found {found}")


def _parts(plan: TrainingPlan) -> dict[str, Any]:
    """The parts of the plan's network, and what each may be."""
    return hints(type(preset(plan.network, plan.size)))


def vary(plan: TrainingPlan, config: dict[str, Any], name: str) -> TrainingPlan:
    """The plan with a trial's choices: parts go to the network, the rest to every stage."""
    parts = {key: value for key, value in config.items() if key in _parts(plan)}
    settings = {key: value for key, value in config.items() if key not in parts}
    stages = [replace(stage, **settings) for stage in plan.stages]
    return replace(plan, name=name, parts={**plan.parts, **parts}, stages=stages)


def run_trial(config: dict[str, Any], sweep: Sweep, queue: Queue) -> None:
    """One trial: fit the varied plan on Ray Train, then score it on the validation set."""
    trial = tune.get_context().get_trial_id()
    name = f"{sweep.name}-{trial}"

    def tell(news: dict[str, Any]) -> None:
        queue.actor.put_nowait.remote({**news, "trial": trial})

    network = fit(vary(sweep.plan, config, name), join(sweep.storage, sweep.name), tell, threads=sweep.threads)
    model = Model.load(local_path(network))
    scored = evaluate({name: lambda clip: segment_clip(model.start(), clip)}, Truth(sweep.validation))[name]
    scores = {METRIC: scored["J&F"], "J_mean": scored["J"], "F_mean": scored["F"]}
    tell({**scores, "config": config})
    tune.report({**scores, "network": network})


def _tuner(sweep: Sweep, space: dict[str, Any], queue: Queue) -> tune.Tuner:
    # The trial itself needs next to nothing: what it starts on Ray Train reserves its own CPUs.
    trainable = tune.with_resources(tune.with_parameters(run_trial, sweep=sweep, queue=queue), {"cpu": 0.01})
    path = join(sweep.storage, sweep.name, "tune")
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=sweep.trials,
            max_concurrent_trials=sweep.concurrency,
            search_alg=OptunaSearch(seed=sweep.seed),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=join(sweep.storage, sweep.name), verbose=0),
    )


def _result(result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    return {
        "trial": metrics.get("trial_id", Path(result.path).name),
        "config": result.config,
        METRIC: metrics.get(METRIC),
        "J_mean": metrics.get("J_mean"),
        "F_mean": metrics.get("F_mean"),
        "network": metrics.get("network"),
        "error": str(result.error).strip().splitlines()[-1] if result.error else None,
    }


def _rank(trial: dict[str, Any]) -> float:
    """Sorts the best score first, and trials without one last."""
    score = trial[METRIC]
    return math.inf if score is None or math.isnan(score) else -score


def _claim(sweep: Sweep, space: dict[str, Any]) -> None:
    """Write what the sweep is, or refuse a folder that holds another sweep: Tune would mix the two."""
    content = {
        "plan": asdict(sweep.plan),
        **sweep.plan.contents(),
        "space": {key: _described(domain) for key, domain in space.items()},
        "trials": sweep.trials,
        "seed": sweep.seed,
        "validation": ShardSet(sweep.validation).digest,
    }
    claim(join(sweep.storage, sweep.name, "sweep.json"), content, f"sweep {sweep.name} in {sweep.storage}")


def _described(domain: Any) -> Any:
    """A domain of Ray Tune, or a plain value, as JSON."""
    if not isinstance(domain, Domain):
        return domain
    values = {key: value for key, value in vars(domain).items() if isinstance(value, (int, float, str, list, tuple))}
    return {"kind": type(domain).__name__, "sampler": type(domain.sampler).__name__, **values}

"""Sweeps: Ray Tune runs trials, stops or changes them at rungs, and goes on where a sweep was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.sample import Domain
from ray.util.queue import Queue

from vosforge.data.shards import ShardSet
from vosforge.errors import UserError, find_user_error
from vosforge.evaluation.protocols import check_protocol
from vosforge.evaluation.truth import Truth
from vosforge.search.examining import METRICS, RUNGS, rungs_of
from vosforge.search.members import NETWORK_FILE, RESULTS_FILE, SWEEP_FILE
from vosforge.search.searchers import (
    Sieve,
    SiftedOptuna,
    bounds,
    described,
    is_discrete,
    listed,
    noted,
    points,
    quiet,
)
from vosforge.search.space import CHOICES, DEFAULT_EVERY, MEMORY_EVERY, check_space, is_setting
from vosforge.search.splits import check_apart, split
from vosforge.search.trials import Sweep, network_of, run_trial
from vosforge.search.warm_starts import shared_stages
from vosforge.storage import (
    absolute,
    claim,
    delete,
    delete_folder,
    exists,
    join,
    list_names,
    read_bytes,
    write_bytes,
)
from vosforge.training.on_ray import check_cluster, ray_storage
from vosforge.training.ray_hooks import Listener, news_queue

SCHEDULERS = ("asha", "pbt", "none")
SEARCHES = ("optuna", "random", "grid")
# A sweep that is killed forgets at most what happened since.
_SECONDS_BETWEEN_STATES = "2"
_PBT_QUANTILE = 0.34
_LONGEST_REASON = 300
# Of the head, for all trials of a population; the rest is for helpers of Ray's.
_HEAD_SHARE = 0.95
_REFUSED_FILE = "refused.jsonl"

Space = dict[str, Any]
Found = dict[str, Any]


class AllFailed(UserError):
    """No trial of a sweep came to an end.

    Attributes:
        trials: as `run_sweep` returns them.
    """

    def __init__(self, name: str, trials: list[Found]):
        super().__init__(f"sweep {name}: all {len(trials)} trials failed; the first: {trials[0]['error']}")
        self.trials = trials


def run_sweep(sweep: Sweep, space: Space, on_progress: Callable[[Found], None] = lambda news: None) -> list[Found]:
    """Run the trials, or what is left of a sweep that was stopped.

    Args:
        sweep: what trials share.
        space: Ray Tune's search space; each key is `memory_every`, a part of the network, or a setting of stages, as
            `vosforge.search.space.vary` reads it.
        on_progress: hears `{"trial", "step", "loss", ...}` of every training step of every trial, `{"trial", "rung",
            "JF_mean", ...}` of every rung, `{"trial", "warm_start", "reused"}` of shared stages, and `{"refused",
            "reason"}` of configurations that were not tried.

    Returns:
        Trials, best first: `{"trial", "state", "config", "step", "JF_mean", "J_mean", "F_mean", "rungs", "network",
        "saved_steps", "saved_seconds", "error"}`. The state is "finished", "stopped" by the scheduler, or "failed",
        with the error. The list is also written to `trials.json`, and the best trial's network beside it.

    Raises:
        UserError: for an empty space, a key that is unknown, a metric that no trial reports, a sweep of this name with
            other settings or shards that changed since, too small a cluster, or when all trials failed.
    """
    space = {key: _domain(value) for key, value in space.items()}
    sweep = _resolved(sweep, space)
    _claim(sweep, space)
    results = join(sweep.folder, RESULTS_FILE)
    if exists(results):
        return json.loads(read_bytes(results))
    _check_room(sweep)
    quiet()
    # Tune's newer output prints its settings at every verbosity, and errors of trials; progress is told otherwise.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", _SECONDS_BETWEEN_STATES)
    notes = join(sweep.folder, _REFUSED_FILE)
    sieve = Sieve(sweep.plan, notes)
    queue = news_queue()
    with Listener(queue, on_progress):
        try:
            tuner, expected = _tuner(sweep, space, queue, sieve)
        except UserError:
            _give_up(sweep)
            raise
        grid = tuner.fit()
    for config, why in noted(notes):
        on_progress({"refused": config, "reason": why})
    found = sorted((_result(result, sweep) for result in grid), key=partial(_rank, metric=sweep.metric))
    refused = noted(notes)
    if not found and refused:
        _give_up(sweep)
        raise UserError(f"sweep {sweep.name}: no configuration of the space can run; {refused[0][1]}")
    if not found or len(found) < expected or any(trial["state"] == "interrupted" for trial in found):
        # Tune takes Ctrl-C for itself, saves its state and returns what there is.
        raise KeyboardInterrupt
    if all(trial["state"] == "failed" for trial in found):
        raise AllFailed(sweep.name, found)
    write_bytes(join(sweep.folder, NETWORK_FILE), read_bytes(found[0]["network"]))
    write_bytes(results, json.dumps(found, indent=1).encode())
    return found


def _give_up(sweep: Sweep) -> None:
    """Free the name of a sweep of which no trial was started, for a space that can run."""
    if not any(name.startswith(f"{sweep.name}-") for name in list_names(sweep.folder)):
        for name in (SWEEP_FILE, _REFUSED_FILE):
            delete(join(sweep.folder, name))
        delete_folder(join(sweep.folder, "tune"))


def _domain(value: Any) -> Any:
    """`tune.grid_search` as the choice that it is, so that every search can take it."""
    listed_values = isinstance(value, dict) and set(value) == {"grid_search"}
    return tune.choice(value["grid_search"]) if listed_values else value


def _resolved(sweep: Sweep, space: Space) -> Sweep:
    """The sweep with all that follows from its space and storage, after what can be refused at once."""
    check_space(sweep.plan, space)
    for name, value, valid in (
        ("scheduler", sweep.scheduler, SCHEDULERS),
        ("search", sweep.search, SEARCHES),
        ("metric", sweep.metric, METRICS),
    ):
        if value not in valid:
            raise UserError(f"sweep {sweep.name}: --{name}: expected {' or '.join(valid)}, found {value!r}")
    if sweep.scheduler == "pbt" and sweep.search == "optuna":
        raise UserError("--scheduler pbt changes trials itself; take --search random or grid with it")
    if min(sweep.trials, sweep.concurrency, sweep.rungs) < 1 or sweep.reduction < 2:
        raise UserError(
            f"sweep {sweep.name}: expected at least 1 trial, concurrency and rung and a reduction of at least 2, found "
            f"{sweep.trials}, {sweep.concurrency}, {sweep.rungs} and {sweep.reduction}"
        )
    check_protocol(sweep.protocol)
    if sweep.resources.workers > 1 and 0 < sweep.resources.gpus < 1:
        raise UserError(
            f"sweep {sweep.name}: --workers {sweep.resources.workers} with --gpus {sweep.resources.gpus:g}: NCCL takes "
            "one process a GPU; take one worker, or whole GPUs"
        )
    check_apart(sweep.validation, sweep.plan.contents()["data_digests"], "validation")
    split(Truth(sweep.validation))
    sweep.plan.samplers()
    plan = sweep.plan
    if sweep.scheduler != "none":
        plan = replace(plan, checkpoint_every=min(plan.checkpoint_every, sweep.first_rung))
    shared = shared_stages(plan, {key: is_discrete(domain) for key, domain in space.items()})
    every = points(space.get(MEMORY_EVERY, DEFAULT_EVERY))
    places = {"storage": absolute(sweep.storage), "validation": absolute(sweep.validation)}
    return replace(sweep, plan=plan, shared_stages=shared, memory_every=tuple(every), **places)


def _check_room(sweep: Sweep) -> None:
    """Refuse trials that would wait for each other for ever: each needs CPUs to train and to decode.

    Raises:
        UserError: with what is asked and what is there.
    """
    resources = sweep.resources
    workers = resources.workers * min(sweep.concurrency, sweep.trials)
    try:
        check_cluster(workers, resources.gpus > 0, resources.cpus, resources.feeders, gpu_share=resources.gpus or 1.0)
    except UserError as error:
        raise UserError(f"{sweep.concurrency} trials at a time: {error}, or --concurrency") from None


def _tuner(sweep: Sweep, space: Space, queue: Queue, sieve: Sieve) -> tuple[tune.Tuner, int]:
    """The tuner, and how many trials it will have at least."""
    # What a trial starts on Ray Train reserves its CPUs. A share of one for the trial itself would leave the last
    # decoder without a whole one; Tune wants something, and the head is the node that lasts. A population has to be
    # there as a whole to take turns, so that its trials' shares of the head, not Tune, limit how many run at a time.
    population = sweep.scheduler == "pbt"
    needs = {"cpu": 0, HEAD_NODE_RESOURCE_NAME: _HEAD_SHARE / sweep.concurrency if population else 0.001}
    trainable = tune.with_resources(tune.with_parameters(run_trial, sweep=sweep, queue=queue), needs)
    folder, files = ray_storage(sweep.folder)
    path = join(folder, "tune")
    searcher, configs = None, []
    if sweep.search == "optuna" and any(isinstance(domain, Domain) for domain in space.values()):
        searcher = SiftedOptuna(sieve, space, sweep.metric, sweep.seed)
    else:
        configs = listed(sieve, space, sweep.search, sweep.trials, sweep.seed)
        if not configs:
            raise UserError(f"sweep {sweep.name}: no configuration of the space can run; {sieve.refused[0][1]}")
    if tune.Tuner.can_restore(path, storage_filesystem=files):
        restored = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, storage_filesystem=files)
        return restored, len(configs)
    tuner = tune.Tuner(
        trainable,
        param_space={} if searcher else {CHOICES: tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode="max",
            num_samples=sweep.trials if searcher else 1,
            max_concurrent_trials=None if population else sweep.concurrency,
            search_alg=searcher,
            trial_dirname_creator=_folder_name,
            scheduler=_scheduler(sweep, space, configs),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=folder, storage_filesystem=files, verbose=0),
    )
    return tuner, len(configs)


def _folder_name(trial: Any) -> str:
    return trial.trial_id


def _scheduler(sweep: Sweep, space: Space, configs: list[dict[str, Any]]) -> TrialScheduler | None:
    """Both count steps: what Tune counts itself starts anew when a sweep is restored."""
    if sweep.scheduler == "asha":
        return ASHAScheduler(
            time_attr="step",
            max_t=sweep.plan.total_steps,
            # Rungs lie at checkpoints, the first one perhaps behind the end.
            grace_period=min(sweep.first_rung, sweep.plan.total_steps),
            reduction_factor=sweep.reduction,
        )
    if sweep.scheduler == "none":
        return None
    # Settings that each trial has: some may lack those that their own choices leave without effect.
    shared = [key for key in space if is_setting(sweep.plan, key) and all(key in config for config in configs)]
    mutations = {key: space[key] for key in shared if isinstance(space[key], Domain)}
    if not mutations:
        raise UserError("--scheduler pbt changes settings of stages while it trains; the space has none")
    return PopulationBasedTraining(
        time_attr="step",
        perturbation_interval=sweep.first_rung,
        quantile_fraction=_PBT_QUANTILE,
        # Numbers of a range are multiplied, values of a choice exchanged for their neighbours.
        hyperparam_mutations={CHOICES: {key: points(d) if bounds(d) is None else d for key, d in mutations.items()}},
        custom_explore_fn=partial(_inside, space=mutations),
    )


def _inside(config: dict[str, Any], space: Space) -> dict[str, Any]:
    """A configuration that was changed, back inside its ranges."""
    choices = dict(config[CHOICES])
    for key in choices.keys() & space.keys():
        if (ends := bounds(space[key])) is not None:
            choices[key] = space[key].cast(min(max(choices[key], ends[0]), ends[1]))
    return {**config, CHOICES: choices}


def _result(result: Any, sweep: Sweep) -> Found:
    metrics = result.metrics or {}
    trial = Path(result.path).name
    run = metrics.get("run", f"{sweep.name}-{trial}")
    step = metrics.get("step", 0)
    error = reason(result.error) if result.error else None
    state = "failed" if error else "interrupted"
    if not error and metrics.get("done"):
        state = "finished" if step >= sweep.plan.total_steps else "stopped"
    return {
        "trial": trial,
        "state": state,
        "config": result.config[CHOICES],
        "step": step,
        **{name: None if error else metrics.get(name) for name in METRICS},
        "rungs": rungs_of(join(sweep.folder, run, RUNGS)),
        "network": None if error else metrics.get("network") or network_of(join(sweep.folder, run), step),
        "saved_steps": metrics.get("saved_steps", 0),
        "saved_seconds": metrics.get("saved_seconds", 0.0),
        "error": error,
    }


def reason(error: Exception) -> str:
    """Why a trial failed, in one line."""
    mendable = find_user_error(error)
    lines = str(mendable or error).strip().splitlines() or [type(error).__name__]
    # What was raised stands after the last frame of a traceback; Ray adds pages to it.
    frames = [i for i, line in enumerate(lines) if line.lstrip().startswith('File "')]
    raised = [line for line in lines[frames[-1] :] if line == line.lstrip()] if frames else lines
    told = (raised or lines[-1:])[0]
    return told.removeprefix("vosforge.errors.UserError: ")[:_LONGEST_REASON]


def _rank(trial: Found, metric: str) -> float:
    """Sorts the best score first, and trials without one last."""
    score = trial[metric]
    return math.inf if score is None or math.isnan(score) else -score


def _claim(sweep: Sweep, space: Space) -> None:
    """Write what the sweep is, or refuse a folder that holds another sweep: Tune would mix the two."""
    shards = ShardSet(sweep.validation)
    settings = {
        key: getattr(sweep, key)
        for key in ("trials", "seed", "scheduler", "search", "metric", "rungs", "reduction", "protocol", "short_side")
    }
    content = {
        "plan": asdict(sweep.plan),
        **sweep.plan.contents(),
        "space": {key: described(domain) for key, domain in space.items()},
        **settings,
        "validation": {"uri": sweep.validation, "digest": shards.digest},
    }
    claim(join(sweep.folder, SWEEP_FILE), content, f"sweep {sweep.name} in {sweep.storage}")

"""Chains: a plan's stages as runs of their own, so that plans which begin alike share what they have in common."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from vosforge.storage import canonical, join
from vosforge.training.checkpoints import NETWORK_FILE
from vosforge.training.plan import TrainingPlan


def chain(plan: TrainingPlan, storage: str) -> list[TrainingPlan]:
    """A plan as one run a stage, each from the network of the one before.

    A run's name holds a digest of all that its weights follow from: network, parts, seed, the stage's numbers, the
    contents of its data, and the runs before it. Plans whose first stages are the same so have those runs in common.
    Optimisers start anew with every stage in one run, too; what differs from it are random draws of the model.

    Args:
        plan: what to train.
        storage: of the runs.

    Returns:
        One plan a stage, in order; the last one's network is the plan's.
    """
    contents = plan.contents()
    before, initial = contents["file_digests"].get("initial"), plan.initial
    links = []
    for stage in plan.stages:
        what = {**asdict(plan), "name": "", "stages": [asdict(stage)], "initial": before}
        digest = hashlib.sha256(canonical({**what, **contents, "file_digests": None}).encode()).hexdigest()[:12]
        name = f"{plan.network}-{plan.size}-{stage.name}-{digest}".replace("+", "plus")
        links.append(replace(plan, name=name, stages=[stage], initial=initial))
        before, initial = digest, join(storage, name, NETWORK_FILE)
    return links

"""Chains: a plan's stages as runs of their own, so that plans which begin alike share what they have in common."""

from __future__ import annotations

from dataclasses import replace

from vosforge.storage import join
from vosforge.training.checkpoints import NETWORK_FILE
from vosforge.training.plan import TrainingPlan


def chain(plan: TrainingPlan, storage: str) -> list[TrainingPlan]:
    """A plan as one run a stage, each from the network of the one before.

    A run's name holds the digest of all that its weights follow from: the plan up to its stage, and the contents of its
    data. Plans whose first stages are the same so have those runs in common. Optimisers start anew with every stage in
    one run, too; what differs from it are random draws of the model.

    Args:
        plan: what to train.
        storage: of the runs.

    Returns:
        One plan a stage, in order; the last one's network is the plan's.
    """
    initial, links = plan.initial, []
    for n, stage in enumerate(plan.stages, 1):
        digest = replace(plan, stages=plan.stages[:n]).content_digest
        name = f"{plan.network}-{plan.size}-{stage.name}-{digest}".replace("+", "plus")
        links.append(replace(plan, name=name, stages=[stage], initial=initial))
        initial = join(storage, name, NETWORK_FILE)
    return links

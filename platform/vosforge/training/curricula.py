"""Curricula: the stages that a network is trained through, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from vosforge.data.pseudo_video import PseudoVideoRecipe
from vosforge.data.sampling import SamplingRecipe
from vosforge.errors import UserError
from vosforge.training.stages import Stage

KINDS = {"images": ("images", "pseudo_video"), "bl30k": ("bl30k",), "videos": ("videos",)}


def _paper(name: str, steps: int, max_skip: int) -> Stage:
    return Stage(
        name,
        KINDS[name],
        steps,
        batch=4,
        sampling=SamplingRecipe(crop=(384, 384), max_skip=max_skip, scale=(0.6, 1.0)),
        learning_rate=1e-5,
    )


@dataclass(frozen=True)
class Curriculum:
    """The stages of one network at one size, and where their numbers come from."""

    source: str
    stages: dict[str, Stage] = field(default_factory=dict)


# STM's papers give Adam at 1e-5, batch 4 and 384 pixels; iterations and frame gaps are those of the public
# re-training that reaches the paper's score (800 K steps of images, 800 K of videos, gap growing to 25).
_STM_PAPER = Curriculum(
    "STM (Oh et al. 2019) section 3.5; iterations and gaps from the public re-training with ResNet-50",
    {
        "images": _paper("images", 800_000, 1),
        "bl30k": _paper("bl30k", 500_000, 25),
        "videos": _paper("videos", 800_000, 25),
    },
)


def _nano(name: str, steps: int, frames: int) -> Stage:
    still = PseudoVideoRecipe(rotation=15, shear=5, drift=0.06, paste=2, paste_drift=0.08)
    return Stage(
        name,
        KINDS[name],
        steps,
        batch=8,
        sampling=SamplingRecipe(frames=frames, crop=(96, 96), max_skip=3, scale=(0.7, 1.0), still=still),
        learning_rate=2e-3,
        power=0.9,
        warm_up=20,
        optimizer="adamw",
        weight_decay=1e-2,
        clip_norm=1.0,
        also=() if name == "images" else ("pseudo_video",),
    )


# Two frames first: matching is learnt from pairs, at half the cost of the papers' three.
_NANO = Curriculum(
    "ours, for a CPU",
    {"images": _nano("images", 500, 2), "bl30k": _nano("bl30k", 250, 3), "videos": _nano("videos", 250, 3)},
)

CURRICULA = {
    ("stm", "nano"): _NANO,
    ("stm", "small"): _STM_PAPER,
    ("stm", "paper"): _STM_PAPER,
    ("emn", "nano"): _NANO,
    ("qpm", "nano"): _NANO,
    ("skn", "nano"): _NANO,
    ("camn", "nano"): _NANO,
    ("cfbi+", "nano"): _NANO,
    ("mivos", "nano"): _NANO,
    ("kmn", "nano"): _NANO,
    ("stcn", "nano"): _NANO,
}


def stages(network: str, size: str, names: list[str]) -> list[Stage]:
    """The named stages of a network's curriculum, in the order given.

    Raises:
        UserError: for a network without a curriculum or a stage that it does not have, listing what there is.
    """
    if network not in {known for known, _ in CURRICULA}:
        valid = ", ".join(sorted({known for known, _ in CURRICULA}))
        raise UserError(f"unknown network {network!r}; valid: {valid}")
    if (network, size) not in CURRICULA:
        known = ", ".join(f"{n} {s}" for n, s in CURRICULA)
        raise UserError(f"no curriculum for network {network!r} at size {size!r}; there is one for: {known}")
    curriculum = CURRICULA[network, size].stages
    unknown = [name for name in names if name not in curriculum]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "none"
        raise UserError(f"stages of {network}: expected some of {', '.join(curriculum)}, found {found}")
    return [curriculum[name] for name in names]

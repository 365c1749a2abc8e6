"""Curricula: the stages that a network is trained through, as data, every number beside its source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vosforge.data.pseudo_presets import preset
from vosforge.data.pseudo_video import PseudoVideoRecipe
from vosforge.data.sampling import SamplingRecipe
from vosforge.errors import UserError
from vosforge.training.corruption import Corruption
from vosforge.training.stages import Loss, Stage

KINDS = {"images": ("images", "pseudo_video"), "bl30k": ("bl30k",), "videos": ("videos",)}


@dataclass(frozen=True)
class Curriculum:
    """The stages of one network, and where their numbers come from."""

    source: str
    stages: dict[str, Stage]


def _stages(shared: dict[str, Any], **own: dict[str, Any]) -> dict[str, Stage]:
    """Stages by name from what they share and what is each one's own; `sampling` is merged field by field."""
    made = {}
    for name, numbers in own.items():
        fields = {**shared, **numbers}
        sampling = {**shared.get("sampling", {}), **numbers.get("sampling", {})}
        made[name] = Stage(name, KINDS[name], **{**fields, "sampling": SamplingRecipe(**sampling)})
    return made


# Largest frame gaps by progress. STCN and its family, train.py: 5, then 10, 15, 20, 25 and at the end 5 again.
_GAPS_BL30K = ((0.0, 5), (0.1, 10), (0.2, 15), (0.3, 20), (0.4, 25), (0.8, 5))
_GAPS_VIDEOS = (*_GAPS_BL30K[:-1], (0.9, 5))
# The public re-training of STM, train_davis.py: one more every 3,000 of 800,000 clips, up to 25.
_GAPS_STM = tuple((3000 * n / 800_000, 1 + n) for n in range(25))

# STM (2019), section 3.5: Adam at a fixed 1e-5, batch 4, patches of 384, three frames, plain cross-entropy. The paper
# gives days; steps, gaps and DAVIS's share of 8 % (five times as often as a YouTube-VOS video) are those of the public
# re-training that reaches its score: 800 K clips, four a step. BL30K came later: MiVOS's 500 K steps. Crops of
# `scale` of a frame's shorter side stand for the codes' random areas: the root of 0.36, or of 0.25, to the whole.
_STM = Curriculum(
    "STM (Oh et al. 2019) 3.5; steps, gaps and mixture from its public re-training",
    _stages(
        {"batch": 4, "learning_rate": 1e-5, "sampling": {"crop": (384, 384), "scale": (0.6, 1.0)}},
        images={"steps": 200_000, "sampling": {"still": preset("stm-coco")}},
        bl30k={"steps": 500_000, "sampling": {"gaps": _GAPS_BL30K}},
        videos={"steps": 200_000, "sampling": {"gaps": _GAPS_STM}, "repeats": (("DAVIS", 5.0),)},
    ),
)

# EMN (2019), section 3.1: batch 24, Adam at 5e-5 with poly 0.9, cross-entropy, one object a clip; patches of 384x384,
# then of 384x640, which keep the aspect ratio. The paper gives days (2 and 1.5 on four GPUs): the steps are ours.
# It knows no BL30K: that stage takes the numbers of videos.
_EMN_VIDEOS = {"steps": 100_000, "sampling": {"crop": (384, 640), "gaps": ((0.0, 25),)}}
_EMN = Curriculum(
    "EMN (2019) 3.1; steps are ours, the paper gives days",
    _stages(
        {"batch": 24, "learning_rate": 5e-5, "power": 0.9, "sampling": {"crop": (384, 384), "scale": (0.6, 1.0)}},
        images={"steps": 150_000, "sampling": {"still": preset("emn")}},
        bl30k=_EMN_VIDEOS,
        videos=_EMN_VIDEOS,
    ),
)

# QPM (2021), section 3.1: stages as MiVOS, patches of 384, batch 14 and then 8 on each of two GPUs, BCE and MSE with
# equal weights, Adam. Rate, decay, steps, the fall at 70 K and gaps: the code of its first author's next system (QDMN).
_QPM = Curriculum(
    "QPM (2021) 3.1; rate, steps and gaps from its author's later code",
    _stages(
        {
            "learning_rate": 2e-5,
            "weight_decay": 1e-7,
            "loss": Loss(kind="bce", quality=1.0),
            "sampling": {"crop": (384, 384), "scale": (0.6, 1.0)},
        },
        images={"steps": 160_000, "batch": 28, "sampling": {"still": preset("qpm"), "objects": 1}},
        bl30k={"steps": 250_000, "batch": 16, "sampling": {"gaps": _GAPS_BL30K, "scale": (0.5, 1.0)}},
        videos={
            "steps": 150_000,
            "batch": 16,
            "milestones": (70 / 150,),
            "sampling": {"gaps": ((0.0, 5), (0.1, 10), (0.2, 15), (0.3, 20), (0.4, 25), (0.7, 10), (0.9, 5))},
            "repeats": (("DAVIS", 5.0),),
        },
    ),
)

# SKN (2021), section 4.1: shortest edge 480, crops of 380, masks spoilt in the last stage alone. All else is that of
# the public re-training of STM, whose author is among SKN's; how much is spoilt is ours.
_SKN = Curriculum(
    "SKN (2021) 4.1; the rest from the public re-training of STM",
    _stages(
        {"batch": 4, "learning_rate": 1e-5, "sampling": {"crop": (380, 380), "scale": (380 / 480, 380 / 480)}},
        images={"steps": 200_000, "sampling": {"still": preset("skn")}},
        bl30k={"steps": 500_000, "sampling": {"gaps": _GAPS_BL30K}},
        videos={
            "steps": 200_000,
            "power": 0.9,
            "sampling": {"gaps": _GAPS_STM},
            "corruption": Corruption(swap=0.3, morph=0.5),
            "repeats": (("DAVIS", 5.0),),
        },
    ),
)

# CAMN (2021), section 3: rate 0.01, batch 8, sequential training, videos alone. The rest is CFBI+'s configuration
# (resnet101_cfbip.py): SGD, poly 0.9, 100 K steps, warm-up 1,000, crops of 465, gap 3, the hardest 15 % by half time,
# gradients of norm 5, DAVIS 30 times. A clip is the reference and three frames in sequence; there, before half time,
# one. Stages of images and BL30K take the same numbers.
_CFBI = {
    "steps": 100_000,
    "batch": 8,
    "learning_rate": 0.01,
    "power": 0.9,
    "warm_up": 1000,
    "optimizer": "sgd",
    "weight_decay": 15e-5,
    "clip_norm": 5.0,
    "loss": Loss(hardest=0.15, hardest_between=(0.0, 0.5)),
    "sampling": {"frames": 4, "crop": (465, 465), "gaps": ((0.0, 3),), "scale": (0.6, 1.0)},
}
_CAMN = Curriculum(
    "CAMN (2021) 3; the rest from CFBI+'s configuration",
    _stages(_CFBI, images={}, bl30k={}, videos={"repeats": (("DAVIS", 30.0),)}),
)

# STCN (2021), hyper_para.py and losses.py: rates fall to a tenth late; all pixels count until step 20 K, the hardest
# 15 % from 70 K on.
_STCN = Curriculum(
    "STCN's public training code",
    _stages(
        {
            "batch": 8,
            "learning_rate": 1e-5,
            "weight_decay": 1e-7,
            # One object is the target and one more may be there (vos_dataset.py).
            "sampling": {"crop": (384, 384), "scale": (0.6, 1.0), "objects": 2},
        },
        images={
            "steps": 300_000,
            "batch": 16,
            "milestones": (0.5,),
            "loss": Loss(hardest=0.15, hardest_between=(20 / 300, 70 / 300)),
            "sampling": {"still": preset("stcn"), "objects": 1},
        },
        bl30k={
            "steps": 500_000,
            "milestones": (0.8,),
            "loss": Loss(hardest=0.15, hardest_between=(20 / 500, 70 / 500)),
            "sampling": {"gaps": _GAPS_BL30K, "scale": (0.5, 1.0)},
        },
        videos={
            "steps": 300_000,
            "milestones": (250 / 300,),
            "loss": Loss(hardest=0.15, hardest_between=(20 / 300, 70 / 300)),
            "sampling": {"gaps": _GAPS_VIDEOS},
            "repeats": (("DAVIS", 5.0),),
        },
    ),
)

# MiVOS (2021), Mask-Propagation's hyper_para.py: as STCN's but for batch, steps and falls.
_MIVOS = Curriculum(
    "Mask-Propagation's public training code",
    {
        "images": replace(_STCN.stages["images"], batch=14, milestones=(250 / 300,)),
        "bl30k": replace(_STCN.stages["bl30k"], milestones=(0.9,)),
        "videos": replace(
            _STCN.stages["videos"],
            steps=150_000,
            milestones=(125 / 150,),
            loss=Loss(hardest=0.15, hardest_between=(20 / 150, 70 / 150)),
        ),
    },
)


def _nano(name: str, steps: int, frames: int) -> Stage:
    still = PseudoVideoRecipe(rotation=15, shear=5, drift=0.06, paste=2, paste_drift=0.08)
    return Stage(
        name,
        KINDS[name],
        steps,
        batch=8,
        sampling=SamplingRecipe(frames=frames, crop=(96, 96), gaps=((0.0, 3),), scale=(0.7, 1.0), still=still),
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


# STM unified (2019), section 2.4: the interactive model is trained by itself, in the same two steps, on scribbles. How
# many rounds the paper leaves open; three is ours.
def _in_rounds(curriculum: Curriculum, rounds: int) -> Curriculum:
    stages = {name: replace(stage, rounds=rounds) for name, stage in curriculum.stages.items()}
    return Curriculum(f"{curriculum.source}; {rounds} rounds of scribbles are ours", stages)


# One object on small crops, in two rounds: with three objects on crops of 96 it took several times as long until masks
# came at all. The dice loss keeps the network from calling everything background.
def _few(stage: Stage) -> Stage:
    sampling = replace(stage.sampling, frames=2, crop=(64, 64), objects=1)
    return replace(stage, sampling=sampling, rounds=2, loss=Loss(dice=1.0))


_NANO_INTERACTIVE = Curriculum(
    "ours, for a CPU, in 2 rounds of scribbles", {name: _few(stage) for name, stage in _NANO.stages.items()}
)

PAPER = {
    "stm": _STM,
    "stm-interactive": _in_rounds(_STM, 3),
    "emn": _EMN,
    "qpm": _QPM,
    "skn": _SKN,
    "camn": _CAMN,
    "cfbi+": _CAMN,
    "mivos": _MIVOS,
    "kmn": _STM,
    "stcn": _STCN,
}


def curriculum(network: str, size: str) -> Curriculum:
    """The curriculum of a network at a size: its paper's at `paper` and `small`, ours at `nano`.

    Raises:
        UserError: for a network or size without one, listing what there is.
    """
    if network not in PAPER:
        raise UserError(f"unknown network {network!r}; valid: {', '.join(sorted(PAPER))}")
    if size not in ("nano", "small", "paper"):
        raise UserError(f"unknown size {size!r}; valid: nano, small, paper")
    if size != "nano":
        return PAPER[network]
    return _NANO_INTERACTIVE if network == "stm-interactive" else _NANO


def stages(network: str, size: str, names: list[str]) -> list[Stage]:
    """The named stages of a network's curriculum, in the order given.

    Raises:
        UserError: for a network or size without a curriculum, or a stage that it does not have, listing what there is.
    """
    there = curriculum(network, size).stages
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "none"
        raise UserError(f"stages of {network}: expected some of {', '.join(there)}, found {found}")
    return [there[name] for name in names]

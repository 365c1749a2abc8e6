"""What a stage trains on, as a picture: clips as they are sampled, spoilt masks, scribbles."""

from __future__ import annotations

import numpy as np
import torch

from vosforge.clip import Clip
from vosforge.data.sampling import ClipSampler
from vosforge.pictures import davis_palette, overlay
from vosforge.training.corruption import corrupted
from vosforge.training.scribbles import draw_round
from vosforge.training.stages import Corruption, Stage

_SPOILT = 5
_BACKGROUND_STROKE = (255, 255, 255)


Rows = list[tuple[str, list[np.ndarray]]]


def stage_rows(stage: Stage, sampler: ClipSampler, seed: int, clips: int = 4) -> Rows:
    """Clips of a stage in rows: frames with their masks, and beside them what is made of those.

    Where the stage spoils masks, the truth of the second frame stands for its estimate, followed by several draws; it
    is spoilt every time, however seldom the stage does. Where it has rounds, the frame touched in the first one
    follows with its scribbles, the background's in white.

    Args:
        stage: of a curriculum.
        sampler: of its clips, of which those in equal steps through the stage are shown: gaps grow as it goes on.
        seed: of the run.
        clips: how many.

    Returns:
        For `pictures.contact_sheet`: captions, and pictures `(H, W, 3)` uint8 RGB.
    """
    rows = []
    for i in np.linspace(0, stage.steps * stage.batch - 1, clips).astype(int).tolist():
        clip = sampler.clip(i)
        shown = [(f"frame {t + 1}", overlay(*pair)) for t, pair in enumerate(zip(clip.frames, clip.masks, strict=True))]
        if stage.corruption.happens:
            shown += spoilt_pictures(clip, stage.corruption, np.random.default_rng([seed, i]))
        if stage.rounds:
            shown.append(("first scribbles", scribbled_picture(clip, np.random.default_rng([seed, i, 0]))))
        names, pictures = zip(*shown, strict=True)
        rows.append((f"{stage.name}, clip {i:,}: {' | '.join(names)}", list(pictures)))
    return rows


def spoilt_pictures(
    clip: Clip, how: Corruption, rng: np.random.Generator, draws: int = _SPOILT
) -> list[tuple[str, np.ndarray]]:
    """The mask of a clip's second frame, then as it may be memorised; what is likely is always done.

    Args:
        clip: its objects are numbered 1..K.
        how: as in the stage; a swap or change of size happens in every draw if it ever does.
        rng: every draw comes from it.
        draws: how many spoilt ones.

    Returns:
        1 + draws pictures `(H, W, 3)` uint8 RGB, each with its name.
    """
    objects = max(1, int(clip.masks.max()))
    estimate = torch.from_numpy(np.stack([clip.masks[1] == k for k in range(1, objects + 1)])).float()
    valid = torch.from_numpy(np.isin(np.arange(1, objects + 1), clip.masks[0]))
    found = [("mask 2", _plain(clip.masks[1]))]
    for n in range(draws):
        # In turn each alone, then both; what the stage never does is left out.
        swap = how.swap > 0 and (n % 3 != 1 or not how.morph)
        morph = how.morph > 0 and (n % 3 != 0 or not how.swap)
        always = Corruption(swap=float(swap), morph=float(morph), side=how.side, radius=how.radius)
        spoilt = corrupted(estimate, valid, always, rng)
        background = (1 - spoilt.sum(dim=0, keepdim=True)).clamp(min=0)
        ids = torch.cat([background, spoilt]).max(dim=0).indices.numpy().astype(np.uint8)
        done = [name for name, happens in (("swapped", swap), ("grown or shrunk", morph)) if happens]
        found.append((", ".join(done), _plain(ids)))
    return found


def scribbled_picture(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """The frame that a synthetic user touches first, with what is drawn there, `(H, W, 3)` uint8 RGB."""
    objects = max(1, int(clip.masks.max()))
    frame, planes = draw_round(clip.masks.astype(np.int64), None, objects, [], rng)
    picture = (clip.frames[frame] * 0.6).astype(np.uint8)
    # What is negative for all objects was drawn for the background.
    picture[planes[:, 1].all(axis=0)] = _BACKGROUND_STROKE
    for k in range(objects):
        picture[planes[k, 0]] = davis_palette()[k + 1]
    return picture


def _plain(ids: np.ndarray) -> np.ndarray:
    """Objects in the palette's colours on black."""
    return overlay(np.zeros((*ids.shape, 3), np.uint8), ids, strength=0.8)

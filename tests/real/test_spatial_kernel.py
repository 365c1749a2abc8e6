"""SKN's spatial constraint on real video, where `VOSFORGE_DATA` points at it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vosforge import pictures
from vosforge.data.layouts import find_videos
from vosforge.networks import build
from vosforge.networks.readers import spatial_kernel

DATA = Path(os.environ.get("VOSFORGE_DATA", ""))
pytestmark = pytest.mark.skipif(
    not (DATA / "DAVIS" / "JPEGImages").is_dir(), reason="VOSFORGE_DATA does not point at a folder with DAVIS"
)


def test_best_matches_of_a_real_object_lie_where_it_was():
    video = find_videos(DATA / "DAVIS", split="val").videos[0]
    clip = replace(video, frames=video.frames[:2], masks=video.masks[:2]).read()
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(clip.masks[0] == 1)[None, None].float()
    torch.manual_seed(0)
    network = build("skn", "nano").eval()
    with torch.no_grad():
        query = network.encode_query(frames[1:], previous=masks)
        key, _ = network.encode_memory(frames[:1], masks)
        sck = spatial_kernel(query.previous[0])[0]
        rows = query.key[:, 0].flatten(2).transpose(1, 2) / key.shape[2] ** 0.5
        free, constrained = (
            network.reader.best_matches(key[:, 0].flatten(2), rows, prior)[0] for prior in (None, sck.flatten()[None])
        )
    inside = query.previous[0, 0].flatten() > 0.5
    assert inside[sck.argmax()]
    hits = [float(inside[found[inside]].float().mean()) for found in (free, constrained)]
    assert hits[1] > max(0.8, hits[0])
    shown = pictures.heat(clip.frames[1], sck.numpy())
    assert shown.shape == clip.frames[1].shape
    assert not np.array_equal(shown, clip.frames[1])

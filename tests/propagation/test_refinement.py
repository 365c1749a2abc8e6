from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.propagation import CopyFirstMask, OpticalFlow, Propagator, Refined
from vosforge.propagation.refinement import far_components


def disc(centre: tuple[int, int], radius: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, centre, radius, 1, -1)
    return mask


class Scripted(CopyFirstMask):
    """Answers given masks one frame after the other."""

    def __init__(self, script: list[np.ndarray]):
        super().__init__()
        self.script = script

    def predict(self, frame):
        if not self.objects:
            return super().predict(frame)
        mask = torch.from_numpy(self.script[self._index + 1]).float()
        return torch.stack([1 - 0.9 * mask, 0.9 * mask])


def test_components_far_from_the_last_mask_are_found_and_the_nearest_stays():
    last, near, far = disc((20, 20), 6) > 0, disc((24, 22), 6), disc((70, 50), 5)
    assert (far_components((near + far) > 0, last, 10) == far).all()
    assert not far_components(far > 0, last, 10).any()
    assert not far_components((near + far) > 0, last, 100).any()
    assert not far_components(np.zeros_like(last), last, 10).any()


def run(segmenter, masks: list[np.ndarray]) -> list[np.ndarray]:
    frame = np.zeros((60, 80, 3), np.uint8)
    return [segmenter.labels(segmenter.step(frame, mask if t == 0 else None)) for t, mask in enumerate(masks)]


def test_component_that_jumps_is_removed_and_becomes_background():
    near, far = disc((24, 22), 6), disc((70, 50), 5)
    script = [near, near + far, near + far]
    found = run(Refined(Scripted(script), reach=0.1, small=0), script)
    assert (found[1] == near).all()
    assert (found[2] == near).all()
    assert (run(Refined(Scripted(script), reach=None, small=0), script)[1] == near + far).all()


def test_object_that_vanished_is_sought_from_where_it_was_last_seen():
    near, far = disc((24, 22), 6), disc((70, 50), 5)
    script = [near, np.zeros_like(near), near + far]
    assert (run(Refined(Scripted(script), reach=0.1, small=0), script)[2] == near).all()


class Blurred(OpticalFlow):
    """Optical flow that sees small things blurred away: what it answers is the mask without its rim."""

    def predict(self, frame):
        found = super().predict(frame)
        if len(found) < 2 or frame.shape[-1] != 160:
            return found
        inside = torch.from_numpy(cv2.erode(found[1].numpy(), np.ones((5, 5))))
        return torch.stack([1 - inside, inside])


def moving(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A small textured disc that wanders over a textured ground: `(T, 120, 160, 3)` and its masks."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.integers(0, 256, (120, 160, 3), np.uint8), (0, 0), 3)
    video, masks = np.repeat(ground[None], frames, axis=0), np.zeros((frames, 120, 160), np.uint8)
    for t in range(frames):
        cv2.circle(masks[t], (40 + 2 * t, 50 + t), 7, 1, -1)
        video[t][masks[t] == 1] = (230, 30, 30)
    return video, masks


def jaccards(segmenter, video: np.ndarray, masks: np.ndarray) -> float:
    found = [segmenter.labels(segmenter.step(f, masks[0] if t == 0 else None)) for t, f in enumerate(video)]
    return float(np.mean([(f & m).sum() / (f | m).sum() for f, m in zip(found[1:], masks[1:], strict=True)]))


def test_small_object_is_segmented_again_from_an_enlarged_crop():
    video, masks = moving(4)
    plain = jaccards(Blurred(), video, masks)
    refined = jaccards(Refined(Blurred(), reach=None, small=0.05), video, masks)
    assert plain < 0.5
    assert refined > plain + 0.2


def test_large_object_is_left_as_it_is():
    video, masks = moving(3)
    assert jaccards(Refined(Blurred(), reach=None, small=1e-5), video, masks) == jaccards(Blurred(), video, masks)


def test_refined_network_follows_several_objects_of_any_size(nano, noise):
    clip = noise(5, 3)
    segmenter = Refined(Propagator(nano("camn")), small=0.5)
    for t, frame in enumerate(clip.frames):
        answer = segmenter.step(frame, clip.masks[t] if t < 3 else None)
        assert (answer.sum(dim=0) - 1).abs().max() < 1e-4
        assert answer.min() >= 0
    assert segmenter.objects == [3, 6, 9]


@pytest.mark.parametrize("options", [{"reach": -1}, {"small": 1.0}, {"enlarge": 0.5}, {"reach": float("nan")}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="must be a"):
        Refined(CopyFirstMask(), **options)

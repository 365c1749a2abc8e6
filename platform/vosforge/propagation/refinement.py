"""Refinement of masks while they are propagated (CAMN, 2.4): jumps are dropped, small objects looked at again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.propagation.segmenter import Around, Segmenter


class Seen(NamedTuple):
    """A frame `(1, 3, H, W)` and its probabilities `(K + 1, H, W)`."""

    frame: torch.Tensor
    probabilities: torch.Tensor


class Refined(Around):
    """A segmenter whose masks are refined before they are remembered.

    1. Of an object's connected components those far from where it last was are removed; the nearest stays.
    2. A small object is cropped, enlarged and segmented again, by a fresh segmenter that remembers the enlarged crops
       of the frame where the object was given and of the previous one.

    The paper names both and gives no numbers.

    Args:
        member: a fresh segmenter.
        reach: distance from the object's last mask beyond which a component is removed, as a share of the frame's
            diagonal; None removes none.
        small: objects below this share of the frame's area are looked at again; 0 for none.
        enlarge: greatest factor by which their crops are enlarged.

    Raises:
        UserError: for numbers out of range.
    """

    def __init__(self, member: Segmenter, reach: float | None = 0.1, small: float = 0.005, enlarge: float = 3.0):
        super().__init__(member)
        if reach is not None and not reach >= 0:
            raise UserError(f"reach must be a share of the diagonal of at least 0, or None, found {reach}")
        if not 0 <= small < 1:
            raise UserError(f"small must be a share of the frame's area in [0, 1), found {small}")
        if not 1 <= enlarge < math.inf:
            raise UserError(f"enlarge must be a factor of at least 1, found {enlarge}")
        self.reach = reach
        self.small = small
        self.enlarge = enlarge
        # Where each object was when it was last seen, `(H, W)` uint8; where it was given, and the previous frame.
        self._last: dict[int, np.ndarray] = {}
        self._given: dict[int, Seen] = {}
        self._previous: Seen | None = None

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """The member's probabilities, refined."""
        probabilities = self.member.predict(frame)
        if self.reach is not None:
            probabilities = self._without_jumps(probabilities)
        if self.small:
            probabilities = self._looked_at_again(frame, probabilities)
        return probabilities

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Hand the refined masks to the member, and keep where the objects are."""
        self.hand_on(self.member, frame, probabilities, given)
        self._previous = Seen(frame, probabilities)
        labels = probabilities.max(dim=0).indices
        for k, i in enumerate(self.objects, start=1):
            mask = (labels == k).byte().cpu().numpy()
            if mask.any() or i in given:
                self._last[i] = mask
            if i in given:
                self._given[i] = Seen(frame, probabilities[[0, k]])

    def forget(self, objects: Sequence[int]) -> None:
        """Have the member forget them, and where they were."""
        super().forget(objects)
        kept = [k for k, i in enumerate(self.objects, start=1) if i not in objects]
        for i in objects:
            self._last.pop(i, None)
            self._given.pop(i, None)
        if self._previous is not None:
            self._previous = Seen(self._previous.frame, self._previous.probabilities[[0, *kept]])

    def fresh(self) -> Refined:
        """The same around a fresh member."""
        return Refined(self.member.fresh(), self.reach, self.small, self.enlarge)

    def _without_jumps(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities without components far from where their object last was; the background takes their place."""
        labels = probabilities.max(dim=0).indices.cpu().numpy()
        reach = self.reach * math.hypot(*labels.shape)
        for k, i in enumerate(self.objects, start=1):
            if i not in self._last or not self._last[i].any():
                continue
            far = far_components(labels == k, self._last[i] > 0, reach)
            if far.any():
                away = torch.from_numpy(far).to(probabilities.device)
                probabilities = probabilities.clone()
                probabilities[0] += torch.where(away, probabilities[k], 0)
                probabilities[k] = torch.where(away, 0, probabilities[k])
        return probabilities

    def _looked_at_again(self, frame: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities with those of small objects from an enlarged crop."""
        labels = probabilities.max(dim=0).indices
        for k, i in enumerate(self.objects, start=1):
            area = int((labels == k).sum())
            if i not in self._given or not 0 < area < self.small * labels.numel():
                continue
            found = self._zoomed(frame, labels == k, i)
            if found is not None:
                rows, columns, own = found
                probabilities = probabilities.clone()
                part = probabilities[:, rows, columns]
                others = part.sum(dim=0) - part[k]
                scale = (1 - own) / others.clamp(min=1e-7)
                part = part * scale
                part[k] = own
                probabilities[:, rows, columns] = part
        return probabilities

    def _zoomed(self, frame: torch.Tensor, mask: torch.Tensor, i: int) -> tuple[slice, slice, torch.Tensor] | None:
        """A window around a small object, and the object's probability `(h, w)` there, segmented enlarged."""
        k = self.objects.index(i) + 1
        previous = self._previous.probabilities
        earlier = Seen(self._previous.frame, torch.stack([1 - previous[k], previous[k]]))
        before = earlier.probabilities[1] > 0.5
        window = _window(mask | before)
        given = self._given[i]
        first = _window(given.probabilities[1] > 0.5)
        if window is None or first is None or not before.any():
            return None
        rows, columns = window
        size = (rows.stop - rows.start, columns.stop - columns.start)
        factor = min(self.enlarge, max(1.0, min(mask.shape) / max(size)))
        zoomed = self.member.fresh()
        wanted = (round(size[0] * factor), round(size[1] * factor))
        for seen, place in ((given, _like(first, size, mask.shape)), (earlier, window)):
            crop = _enlarged(seen.frame[..., place[0], place[1]], wanted)
            masks = _enlarged(seen.probabilities[None, :, place[0], place[1]], wanted)
            zoomed.step(crop[0], (masks[0, 1] > 0.5).long())
        found = zoomed.predict(_enlarged(frame[..., rows, columns], wanted))
        if len(found) < 2:
            return None
        return rows, columns, _enlarged(found[None].to(frame.dtype), size)[0, 1]


def far_components(mask: np.ndarray, last: np.ndarray, reach: float) -> np.ndarray:
    """The connected components of a mask that are far from where it last was.

    Args:
        mask: `(H, W)` bool.
        last: `(H, W)` bool, not empty.
        reach: pixels between a component and `last` up to which it stays; the nearest component always stays.

    Returns:
        `(H, W)` bool.
    """
    count, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return np.zeros_like(mask)
    distance = cv2.distanceTransform((~last).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    nearest = np.array([distance[components == c].min() for c in range(1, count)])
    far = nearest > max(reach, float(nearest.min()))
    return np.isin(components, 1 + np.flatnonzero(far)) & mask


def _window(mask: torch.Tensor) -> tuple[slice, slice] | None:
    """A window of about three times the mask's box on each side; None for an empty mask."""
    places = mask.nonzero()
    if not len(places):
        return None
    low, high = places.amin(dim=0).tolist(), (places.amax(dim=0) + 1).tolist()
    room = max(8, max(b - a for a, b in zip(low, high, strict=True)))
    rows, columns = (
        slice(max(0, a - room), min(side, b + room)) for a, b, side in zip(low, high, mask.shape, strict=True)
    )
    return rows, columns


def _like(window: tuple[slice, slice], size: tuple[int, int], frame: torch.Size) -> tuple[slice, slice]:
    """A window around the same centre, of another size, inside the frame."""
    places = []
    for place, wanted, side in zip(window, size, frame, strict=True):
        start = (place.start + place.stop - wanted) // 2
        start = min(max(0, start), side - wanted)
        places.append(slice(start, start + wanted))
    return places[0], places[1]


def _enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

"""Segmenters: whatever turns frames into masks one by one, alone or as an ensemble."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from vosforge.clip import MAX_OBJECTS, VOID, Clip
from vosforge.errors import UserError

Frame = np.ndarray | torch.Tensor


class Segmenter(ABC):
    """Anything that segments a video frame by frame from given masks.

    `step` is the one stateful entry. A subclass provides `predict` (probabilities of the objects known so far),
    `memorise` (take note of a frame and its probabilities), `forget` (objects that leave) and `fresh`.

    Attributes:
        objects: ids of the objects known so far, ascending; channel i + 1 of the probabilities is `objects[i]`.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = _device(device)
        self.objects: list[int] = []
        self._size: tuple[int, int] | None = None
        self._index = -1

    def step(self, frame: Frame, mask: np.ndarray | torch.Tensor | None = None) -> torch.Tensor:
        """Segment the next frame.

        Args:
            frame: `(3, H, W)` float in [0, 1], or `(H, W, 3)` uint8, RGB.
            mask: `(H, W)` ids given at this frame, any ids in 1..255. Objects may be new or known; given
                pixels win over predicted ones, and a known object named here is exactly what is given.

        Returns:
            `(K + 1, H, W)` probabilities, background first, then `objects`.

        Raises:
            UserError: for a frame or mask of another form or size, naming the frame's position.
        """
        image, given = self.enter(frame, mask)
        probabilities, ids = self.with_given(self.predict(image), given)
        self.memorise(image, probabilities, ids)
        return probabilities

    def enter(self, frame: Frame, mask: np.ndarray | torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Check the next frame and the mask given there, and count it.

        Returns:
            The frame `(1, 3, H, W)` float on the device, and the mask `(H, W)` of ids or None.
        """
        image = self._checked(frame)
        size = (image.shape[-2], image.shape[-1])
        given = None if mask is None else self._checked_mask(mask, size)
        self._index += 1
        self._size = size
        return image, given

    @abstractmethod
    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """Probabilities `(K + 1, H, W)` of `objects` in a `(1, 3, H, W)` frame, from memory alone."""

    @abstractmethod
    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Remember a `(1, 3, H, W)` frame with its `(K + 1, H, W)` probabilities; `given` ids have true masks there."""

    @abstractmethod
    def forget(self, objects: Sequence[int]) -> None:
        """Drop what is kept of some of `objects`, which are still listed."""

    @abstractmethod
    def fresh(self) -> Segmenter:
        """A segmenter with the same settings and networks, at the start of a video."""

    @property
    def memory(self) -> list[dict[str, object]]:
        """What is remembered, for those that remember frames."""
        return []

    @property
    def quality(self) -> dict[int, float]:
        """Assessed quality of each object's mask in the latest frame, for those that assess it."""
        return {}

    def remove(self, *objects: int) -> None:
        """Stop following some objects: from the next frame on they are background, until their masks are given again.

        Raises:
            UserError: for an id that is not known.
        """
        unknown = [i for i in objects if i not in self.objects]
        if unknown:
            raise UserError(f"object {unknown[0]} cannot be removed; known are {self.objects}")
        self.forget(objects)
        self.objects = [i for i in self.objects if i not in objects]

    def hand_on(
        self, member: Segmenter, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]
    ) -> None:
        """Have a member memorise what this segmenter, made of it, found in the frame at hand."""
        member.objects, member._index = list(self.objects), self._index
        member.memorise(frame.to(member.device), probabilities.to(member.device), given)

    def labels(self, probabilities: torch.Tensor) -> np.ndarray:
        """`(H, W)` uint8 ids of the most probable object, ids as given."""
        ids = np.array([0, *self.objects], np.uint8)
        return ids[probabilities.max(dim=0).indices.cpu().numpy()]

    def _checked(self, frame: Frame) -> torch.Tensor:
        """The frame as `(1, 3, H, W)` float on the device, or a `UserError`."""
        position = f"frame {self._index + 1}"
        image = torch.as_tensor(np.array(frame)) if isinstance(frame, np.ndarray) else frame
        if not isinstance(image, torch.Tensor):
            raise UserError(f"{position}: expected a tensor or an array, found {type(frame).__name__}")
        if image.ndim == 3 and image.shape[-1] == 3 and image.dtype == torch.uint8:
            image = image.permute(2, 0, 1).float() / 255
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or 0 in image.shape:
            raise UserError(
                f"{position}: expected (3, H, W) float or (H, W, 3) uint8, found {tuple(image.shape)} {image.dtype}"
            )
        low, high = (float(bound) for bound in torch.aminmax(image))
        if not (low >= -0.5 and high <= 1.5):
            raise UserError(f"{position}: expected values in [0, 1], found {low:.4g} to {high:.4g}")
        size = (image.shape[1], image.shape[2])
        if self._size not in (None, size):
            raise UserError(f"{position}: the video's frames are {self._size}, this one is {size}")
        return image[None].to(self.device)

    def _checked_mask(self, mask: np.ndarray | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The mask on the device, or a `UserError`."""
        position = f"frame {self._index + 1}"
        given = torch.as_tensor(_widened(mask)) if isinstance(mask, np.ndarray) else mask
        if not isinstance(given, torch.Tensor):
            raise UserError(f"{position}: the mask must be a tensor or an array, found {type(mask).__name__}")
        given = given.long() if given.dtype in (torch.uint16, torch.uint32, torch.uint64) else given
        if tuple(given.shape) != size:
            raise UserError(f"{position}: the mask must have the frame's size {size}, found {tuple(given.shape)}")
        if given.is_floating_point() or not 0 <= int(given.min()) <= int(given.max()) <= MAX_OBJECTS:
            found = f"{given.dtype} {given.min().item()}..{given.max().item()}"
            raise UserError(f"{position}: the mask must hold whole ids 0..{MAX_OBJECTS}, found {found}")
        return given.to(self.device)

    def with_given(self, probabilities: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
        """Enter given objects: their pixels win, the known objects lose there, ids stay ascending.

        Args:
            probabilities: `(K + 1, H, W)` of the objects known so far.
            mask: `(H, W)` of ids, or None where no mask is given.

        Returns:
            Probabilities of all objects, and the ids given.
        """
        given = [] if mask is None else [int(i) for i in torch.unique(mask) if i]
        if not given:
            return probabilities, given
        known = dict(zip(self.objects, probabilities[1:], strict=True))
        free = (mask == 0).to(probabilities.dtype)
        objects = sorted({*self.objects, *given})
        planes = [(mask == i).to(probabilities.dtype) if i in given else known[i] * free for i in objects]
        foreground = torch.stack(planes)
        self.objects = objects
        return torch.cat([(1 - foreground.sum(dim=0, keepdim=True)).clamp(min=0), foreground]), given


class Around(Segmenter):
    """A segmenter around another one, whose memory and quality are its own.

    Args:
        member: a fresh segmenter.
    """

    def __init__(self, member: Segmenter):
        super().__init__(member.device)
        self.member = member

    @property
    def memory(self) -> list[dict[str, object]]:
        """What the member remembers."""
        return self.member.memory

    @property
    def quality(self) -> dict[int, float]:
        """What the member thinks of its masks."""
        return self.member.quality

    def forget(self, objects: Sequence[int]) -> None:
        """Have the member forget them."""
        self.member.remove(*objects)


def _device(name: str | torch.device) -> torch.device:
    """The device of that name, or a `UserError` where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; valid: cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has {torch.cuda.device_count()} GPUs; use cpu")
    return device


def _widened(mask: np.ndarray) -> np.ndarray:
    """Whole numbers as int64, which torch compares; 16-bit files hold kinds that it does not."""
    return mask.astype(np.int64) if np.issubdtype(mask.dtype, np.integer) else np.array(mask)


def given_masks(clip: Clip) -> dict[int, np.ndarray]:
    """What a method is told of an annotated clip: each object's mask at the frame where it is seen first.

    Void, 255 beside other ids, is no object; alone it is one, as DAVIS 2016 stores its masks.

    Returns:
        position -> `(H, W)` uint8 mask of the objects that enter there.
    """
    ids = {int(i) for t in np.flatnonzero(clip.annotated) for i in np.unique(clip.masks[t])} - {0}
    known: set[int] = {VOID} if VOID in ids and len(ids) > 1 else set()
    given: dict[int, np.ndarray] = {}
    for t in np.flatnonzero(clip.annotated):
        entering = [int(i) for i in np.unique(clip.masks[t]) if i and int(i) not in known]
        if entering:
            given[int(t)] = np.where(np.isin(clip.masks[t], entering), clip.masks[t], 0).astype(np.uint8)
            known.update(entering)
    return given


def segment_clip(segmenter: Segmenter, clip: Clip, short_side: int | None = None) -> np.ndarray:
    """Segment a whole clip from its objects' first masks.

    Args:
        segmenter: a fresh one.
        clip: its masks say what is given; the rest of them is not looked at.
        short_side: pixels to which frames are reduced first; None keeps their size.

    Returns:
        `(T, H, W)` uint8 ids at the clip's size.
    """
    given = given_masks(clip)
    return np.stack([segment_frame(segmenter, f, given.get(t), short_side) for t, f in enumerate(clip.frames)])


def segment_frame(
    segmenter: Segmenter, frame: np.ndarray, mask: np.ndarray | None = None, short_side: int | None = None
) -> np.ndarray:
    """One step at a reduced size: `(H, W, 3)` uint8 -> `(H, W)` uint8 ids at full size.

    Probabilities are enlarged bilinearly before the most probable object is taken. An object named in the mask is
    exactly what is given; others lose the pixels given to it.
    """
    probabilities = step_reduced(segmenter, frame, mask, short_side)
    return enlarged_labels(probabilities, segmenter.objects, frame.shape[:2], mask)


def step_reduced(
    segmenter: Segmenter, frame: np.ndarray, mask: np.ndarray | None = None, short_side: int | None = None
) -> torch.Tensor:
    """One step at a reduced size: `(H, W, 3)` uint8 -> `(K + 1, h, w)` probabilities at the size of the step.

    Raises:
        UserError: for a short side below 16.
    """
    return segmenter.step(*reduced(frame, mask, short_side))


def reduced(
    frame: np.ndarray, mask: np.ndarray | None = None, short_side: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """A frame `(H, W, 3)` uint8 and the mask given there at a short side of so many pixels; smaller ones as they are.

    Raises:
        UserError: for a short side below 16.
    """
    height, width = frame.shape[:2]
    if short_side is not None and short_side < 16:
        raise UserError(f"short side: expected at least 16 pixels, found {short_side}")
    if short_side is None or short_side >= min(height, width):
        return frame, mask
    factor = short_side / min(height, width)
    size = (round(width * factor), round(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA), None if mask is None else _reduced(mask, size)


def enlarged_labels(
    probabilities: torch.Tensor, objects: Sequence[int], size: tuple[int, int], mask: np.ndarray | None = None
) -> np.ndarray:
    """`(H, W)` uint8 ids of the most probable object at full size, from `(K + 1, h, w)` probabilities.

    Args:
        probabilities: background first, then `objects`.
        objects: their ids, ascending.
        size: (H, W).
        mask: given at that frame, at full size; an object named in it is exactly what is given.
    """
    ids = np.array([0, *objects], np.uint8)
    if tuple(probabilities.shape[-2:]) == tuple(size):
        return ids[probabilities.max(dim=0).indices.cpu().numpy()]
    enlarged = F.interpolate(probabilities[None].float(), tuple(size), mode="bilinear", align_corners=False)[0]
    labels = ids[enlarged.max(dim=0).indices.cpu().numpy()]
    if mask is None:
        return labels
    # Enlarged, an object reaches a little beyond the mask that it was given.
    return np.where((mask > 0) | np.isin(labels, np.unique(mask)), mask, labels)


def _reduced(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at another (width, height); objects that fall between its pixels keep one."""
    reduced = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    for lost in set(np.unique(mask).tolist()) - set(np.unique(reduced).tolist()):
        row, column = (int(np.median(places)) for places in np.nonzero(mask == lost))
        reduced[row * size[1] // mask.shape[0], column * size[0] // mask.shape[1]] = lost
    return reduced

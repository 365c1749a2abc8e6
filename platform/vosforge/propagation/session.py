"""Interactive sessions: a user draws, looks, and draws again, until the masks of all frames are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from vosforge.clip import MAX_OBJECTS
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.propagation.corrections import Correction, affected, carry
from vosforge.propagation.packing import Packed
from vosforge.propagation.propagator import Propagator, check_network
from vosforge.propagation.scribbles import Drawn, Scribbles, draw
from vosforge.propagation.segmenter import Segmenter
from vosforge.propagation.user_memory import UserFrame, UserMemory, scribbled_networks, takes_scribbles
from vosforge.propagation.video import Video

OnFrame = Callable[[int, int], None]


def _unheard(done: int, total: int) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Round:
    """One round of a session.

    Attributes:
        frame: position that the user touched.
        kind: "scribbles" or "mask".
        objects: ids known after it, ascending.
    """

    frame: int
    kind: Literal["scribbles", "mask"]
    objects: tuple[int, ...]


@dataclass(frozen=True)
class _Found:
    """What a round found in one frame: `(H, W)` ids, and the `(K, h, w)` objects' probabilities."""

    objects: tuple[int, ...]
    labels: Packed
    foreground: Packed


@dataclass(frozen=True)
class _State:
    """Everything after a round. Later rounds make another one, so that undoing is going back to this."""

    round: Round | None = None
    objects: tuple[int, ...] = ()
    drawn: Mapping[int, Drawn] = field(default_factory=dict)
    corrections: Mapping[int, Correction] = field(default_factory=dict)
    # The user's masks at full size.
    given: Mapping[int, Correction] = field(default_factory=dict)
    memory: tuple[UserFrame, ...] = ()
    found: Mapping[int, _Found] = field(default_factory=dict)


class Session:
    """Segments a video in rounds: the user touches one frame, and all frames follow, in both directions.

    With a network that takes scribbles (`stm-interactive`) the memory is the frames that the user touched and nothing
    else: every frame reads them, whatever its position (STM unified, 3.2). A touched frame is remembered with all that
    was drawn on it and its mask of the round before, which in the first round is empty; what was remembered in earlier
    rounds stays. Networks that take no scribbles, and other segmenters, follow corrected masks: `correct` carries them
    outward from every corrected frame, blended in between (see `corrections`). Both may be given masks.

    What is kept grows with the rounds by one remembered frame and the compressed masks of the frames that changed.

    Args:
        model: a network, or for masks any segmenter.
        frames: `(T, H, W, 3)` uint8 RGB, or any sequence of `(H, W, 3)`, decoded when asked for; each round asks for
            all frames.
        short_side: pixels to which frames are reduced first; None keeps their size.
        stroke_width: of strokes in pixels of the frame.
        options: of `Propagator`, for a network; one with scribbles uses `device`, `precision` and `channels_last`.

    Raises:
        UserError: for what is no network or segmenter, frames of another form, a network with scribbles that also asks
            for masks (`siamese`, `prior`), or options for a segmenter, which has its own.
    """

    def __init__(
        self,
        model: MemoryNetwork | Segmenter,
        frames: np.ndarray | Sequence[np.ndarray],
        short_side: int | None = None,
        stroke_width: int = 1,
        **options: Any,
    ):
        if stroke_width < 1:
            raise UserError(f"stroke width: expected at least 1 pixel, found {stroke_width}")
        if not isinstance(model, Segmenter):
            check_network(model)
        elif options:
            raise UserError(f"a segmenter has its settings already: {', '.join(options)} would have no effect")
        self._video = Video(frames, short_side)
        self._size, self._inner = self._video.size, self._video.reduced_size
        self._stroke_width = stroke_width
        self._reader: UserMemory | None = None
        if isinstance(model, MemoryNetwork) and takes_scribbles(model):
            self._reader = UserMemory(model, **options)
        else:
            self._start = model if isinstance(model, Segmenter) else Propagator(model, **options)
        self._states = [_State()]
        self._masks = np.zeros((len(frames), *self._size), np.uint8)

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds so far, those undone left out."""
        return tuple(state.round for state in self._states[1:])

    @property
    def objects(self) -> list[int]:
        """Ids of the objects known so far, ascending."""
        return list(self._states[-1].objects)

    @property
    def masks(self) -> np.ndarray:
        """`(T, H, W)` uint8 ids after the latest round; all background before the first. A copy."""
        return self._masks.copy()

    def probabilities(self, frame: int) -> torch.Tensor:
        """`(K + 1, H, W)` float32 after the latest round, background first, then `objects`, those in steps of 1/255.

        Raises:
            UserError: for a frame that the video does not have.
        """
        state, t = self._states[-1], self._video.position(frame)
        foreground = self._foreground(state, t, state.objects)
        whole = torch.cat([(1 - foreground.sum(dim=0, keepdim=True)).clamp(min=0), foreground])
        return _enlarged(whole, self._size)

    def mask(self, frame: int) -> np.ndarray:
        """`(H, W)` uint8 ids of one frame after the latest round. A copy.

        Raises:
            UserError: for a frame that the video does not have.
        """
        return self._masks[self._video.position(frame)].copy()

    @property
    def bytes(self) -> int:
        """Memory taken by the masks, by what rounds found in frames, and by what is remembered of touched ones."""
        found = {id(kept): kept for state in self._states for kept in state.found.values()}
        touched = {id(frame): frame for state in self._states for frame in state.memory}
        packed = sum(len(kept.labels.content) + len(kept.foreground.content) for kept in found.values())
        return self._masks.nbytes + packed + sum(x.nbytes for frame in touched.values() for x in frame.tensors)

    def interact(self, frame: int, scribbles: Scribbles, on_frame: OnFrame = _unheard) -> np.ndarray:
        """Draw on one frame, and segment all.

        A frame may be drawn on several times; where strokes disagree the later ones hold. Objects may be new in any
        round. Nothing changes when an error is raised.

        Args:
            frame: position of the frame drawn on.
            scribbles: the content of a DAVIS scribble file; or the strokes of this frame, `{"path": [[x, y], ...],
                "object_id": k}` with coordinates in [0, 1], object 0 for background; or a map `(H, W)` of signed ids,
                -1 where nothing is drawn; or object -> `(2, H, W)`, its positive and negative scribbles.
            on_frame: hears how many frames of how many are segmented.

        Returns:
            `(T, H, W)` uint8 ids.

        Raises:
            UserError: for a network that takes no scribbles; for a frame that the video does not have; for scribbles
                of another form, outside the frame, of no object, or none at all.
        """
        if self._reader is None:
            names = ", ".join(scribbled_networks())
            raise UserError(
                f"this model takes no scribbles; give it masks with correct(frame, mask), or use a network that does: "
                f"{names}, or any built with memory_input='mask+scribbles'"
            )
        t, state = self._video.position(frame), self._states[-1]
        drawn = draw(scribbles, t, len(self._video), self._size, self._stroke_width).resized(self._inner)
        objects = tuple(sorted({*state.objects, *drawn.objects}))
        unknown = [k for k in drawn.denied if k not in objects]
        if unknown or not objects:
            missing = f"object {unknown[0]}" if unknown else "any object"
            raise UserError(f"scribbles on frame {t}: draw where {missing} is, before where it is not")
        drawn = drawn.over(state.drawn.get(t))
        masks = self._foreground(state, t, objects)
        memory = self._remembered(state, t, objects, masks, drawn)
        # What is drawn on a corrected frame opens its mask to the network again.
        corrections, given = (
            {u: kept for u, kept in known.items() if u != t} for known in (state.corrections, state.given)
        )
        after = replace(
            state,
            round=Round(t, "scribbles", objects),
            objects=objects,
            drawn={**state.drawn, t: drawn},
            corrections=corrections,
            given=given,
            memory=memory,
        )
        return self._finish(after, range(len(self._video)), on_frame)

    def correct(self, frame: int, mask: np.ndarray, on_frame: OnFrame = _unheard) -> np.ndarray:
        """Give the true mask of one frame, and segment all others by it.

        The frame keeps exactly this mask. Objects known before that it does not show are out of sight there. Nothing
        changes when an error is raised.

        Args:
            frame: position.
            mask: `(H, W)` of whole ids 0..255; objects may be new.
            on_frame: hears how many frames of how many are segmented; where masks are carried in two directions,
                each counts.

        Returns:
            `(T, H, W)` uint8 ids.

        Raises:
            UserError: for a frame that the video does not have, a mask of another form, or a first mask without object.
        """
        t, state = self._video.position(frame), self._states[-1]
        mask = self._checked_mask(mask, t)
        objects = tuple(sorted({*state.objects, *(int(k) for k in np.unique(mask) if k)}))
        if not objects:
            raise UserError(f"mask of frame {t}: expected an object, found background alone")
        inner = Correction(_nearest(mask, self._inner), objects)
        after = replace(
            state,
            round=Round(t, "mask", objects),
            objects=objects,
            drawn={u: drawn for u, drawn in state.drawn.items() if u != t},
            corrections={**state.corrections, t: inner},
            given={**state.given, t: Correction(mask, objects)},
        )
        span = range(len(self._video))
        if self._reader is None:
            span = affected(after.corrections, t, len(self._video))
        else:
            after = replace(after, memory=self._remembered(state, t, objects, inner.planes(), None))
        return self._finish(after, span, on_frame)

    def undo(self) -> np.ndarray:
        """Take the latest round back; its frame is again as it was before.

        Returns:
            `(T, H, W)` uint8 ids of the round before, all background before the first.

        Raises:
            UserError: when there is no round.
        """
        if len(self._states) == 1:
            raise UserError("there is no round to undo")
        self._states.pop()
        found = self._states[-1].found
        self._masks[:] = 0
        for t, kept in found.items():
            self._masks[t] = kept.labels.array()
        return self.masks

    def _finish(self, state: _State, span: range, on_frame: OnFrame) -> np.ndarray:
        """Segment the frames that a round changes, and make it the latest."""
        found = dict(state.found)
        for t, probabilities in self._segmented(state, span, on_frame):
            found[t] = self._settled(state, t, probabilities)
        self._states.append(replace(state, found=found))
        for t in span:
            self._masks[t] = found[t].labels.array()
        return self.masks

    def _segmented(self, state: _State, span: range, on_frame: OnFrame) -> Iterator[tuple[int, torch.Tensor]]:
        """Each frame's probabilities `(K + 1, h, w)`, before given masks are entered."""
        if self._reader is not None:
            for t in span:
                yield t, self._reader.segment(self._video.reduced(t), state.objects, state.memory)
                on_frame(t - span.start + 1, len(span))
            return
        carried = carry(self._start, self._video.reduced, state.corrections, span, len(self._video), on_frame)
        for t, planes in carried:
            empty = torch.zeros(self._inner)
            foreground = torch.stack([planes.get(k, empty) for k in state.objects])
            # Passes from two sides may claim more than there is, where each knows objects that the other does not.
            foreground = foreground / foreground.sum(dim=0).clamp(min=1)
            yield t, torch.cat([(1 - foreground.sum(dim=0, keepdim=True)), foreground])

    def _settled(self, state: _State, t: int, probabilities: torch.Tensor) -> _Found:
        """What is kept of a frame, with the mask that was given there."""
        probabilities = probabilities.float().cpu()
        ids = np.array([0, *state.objects], np.uint8)
        given = state.given.get(t)
        if given is not None:
            probabilities = state.corrections[t].entered(probabilities, state.objects)
        # On a CPU `argmax` over the first dimension takes several times as long.
        labels = ids[_enlarged(probabilities, self._size).max(dim=0).indices.numpy()]
        if given is not None:
            labels = np.where((given.mask > 0) | np.isin(labels, given.objects), given.mask, labels)
        return _Found(state.objects, Packed.of(labels), Packed.of_probabilities(probabilities[1:]))

    def _foreground(self, state: _State, t: int, objects: Sequence[int]) -> torch.Tensor:
        """`(K, h, w)` probabilities of some objects in a frame, zeros for those that have none yet."""
        planes: dict[int, torch.Tensor] = {}
        if t in state.found:
            found = state.found[t]
            planes = dict(zip(found.objects, found.foreground.probabilities(), strict=True))
        empty = torch.zeros(self._inner)
        return torch.stack([planes.get(k, empty) for k in objects]) if objects else empty[None][:0]

    def _remembered(
        self, state: _State, t: int, objects: tuple[int, ...], masks: torch.Tensor, drawn: Drawn | None
    ) -> tuple[UserFrame, ...]:
        """The memory with one frame encoded, in place of what was remembered of it."""
        planes = np.zeros((len(objects), 2, *self._inner), bool) if drawn is None else drawn.planes(objects)
        frame = self._reader.encode(self._video.reduced(t), t, objects, masks, planes)
        return (*(kept for kept in state.memory if kept.frame != t), frame)

    def _checked_mask(self, mask: Any, t: int) -> np.ndarray:
        if not isinstance(mask, np.ndarray) or mask.shape != self._size or not np.issubdtype(mask.dtype, np.integer):
            found = f"{mask.shape} {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise UserError(f"mask of frame {t}: expected {self._size} of whole ids, found {found}")
        if not 0 <= mask.min() <= mask.max() <= MAX_OBJECTS:
            raise UserError(f"mask of frame {t}: expected ids 0..{MAX_OBJECTS}, found {mask.min()}..{mask.max()}")
        return mask.astype(np.uint8)


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return mask if mask.shape == size else cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


def _enlarged(probabilities: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(C, h, w)` bilinearly at the frame's size."""
    if tuple(probabilities.shape[-2:]) == tuple(size):
        return probabilities
    return F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)[0]

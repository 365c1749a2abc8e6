"""Frames that stream, each answered by its mask; whole clips are such streams.

Requests name the position that they are about. The one that was answered last may be sent again, with the same body,
and has the same answer; so whoever got no answer asks again without knowing how far the first attempt went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from vosforge.propagation.segmenter import enlarged_labels, reduced
from vosforge.serving.batching import Batcher
from vosforge.serving.journal import digest
from vosforge.serving.limits import Conflict, Limits, NotFound, Refused, TooLarge
from vosforge.serving.media import Clip, check_objects, read_frame, read_mask, to_png
from vosforge.serving.models import Served

Kind = Literal["stream", "interactive"]


class Stream:
    """Masks frame by frame, as frames arrive.

    Args:
        served: the model.
        limits: of what it takes.
        batcher: runs its steps, with those of others.
        short_side: pixels to which frames are reduced; None as the model says.

    Attributes:
        bytes: memory held.
    """

    kind: Kind = "stream"

    def __init__(self, served: Served, limits: Limits, batcher: Batcher, short_side: int | None = None):
        self.served, self._limits, self._batcher = served, limits, batcher
        self._short_side = short_side or served.short_side
        self._segmenter = served.start()
        self._size: tuple[int, int] | None = None
        self._sent: list[str] = []
        self._masks: list[bytes] = []
        self._given: dict[int, tuple[str, np.ndarray | None]] = {}
        self._png_bytes = self.bytes = 0

    @property
    def state(self) -> dict[str, Any]:
        """What is known so far."""
        return {"frames": len(self._sent), "objects": list(self._segmenter.objects)}

    def put_mask(self, t: int, data: bytes) -> None:
        """Give a mask of the next frame, before that is sent.

        Raises:
            Conflict: for another position.
            Refused: for a mask that cannot be used.
        """
        if self.knows_mask(t, data):
            return
        if t != len(self._sent):
            raise Conflict(f"mask {t}: expected the mask of frame {len(self._sent)}, which comes next")
        mask = read_mask(data, f"mask {t}", self._limits)
        if self._size not in (None, mask.shape):
            raise Refused(f"mask {t}: expected the frames' size {self._size}, found {mask.shape}")
        check_objects({*self._segmenter.objects, *np.unique(mask).tolist()} - {0}, f"mask {t}", self._limits)
        self._given[t] = (digest(data), mask)

    def put_frame(self, t: int, data: bytes) -> bytes:
        """Segment the next frame.

        Returns:
            Its mask, a palette PNG.

        Raises:
            Conflict: for another position, or one that was sent with another body.
            Refused: for a frame that cannot be used.
        """
        if self.knows(t, data):
            return self._masks[t]
        frame = read_frame(data, f"frame {t}", self._limits)
        mask = self._given.get(t, ("", None))[1]
        for name, size in (("the first one is", self._size), ("its mask is", None if mask is None else mask.shape)):
            if size not in (None, frame.shape[:2]):
                raise Refused(f"frame {t}: {name} {size}, this frame {frame.shape[:2]}")
        probabilities = self._batcher.step(self._segmenter, *reduced(frame, mask, self._short_side))
        self._size = frame.shape[:2]
        labels = enlarged_labels(probabilities, self._segmenter.objects, self._size, mask)
        self._sent.append(digest(data))
        self._masks.append(to_png(labels))
        if t in self._given:
            # What was given is remembered by the segmenter; here it serves to know it again.
            self._given[t] = (self._given[t][0], None)
        self._png_bytes += len(self._masks[t])
        self.bytes = self._png_bytes + sum(bank["bytes"] for bank in self._segmenter.memory)
        return self._masks[t]

    def knows_mask(self, t: int, data: bytes) -> bool:
        """Whether this mask was given before."""
        return t in self._given and self._given[t][0] == digest(data)

    def knows(self, t: int, data: bytes) -> bool:
        """Whether this frame was sent before; a `Conflict` where it is neither that nor the next."""
        return sent_before(t, data, self._sent, "frame", self._limits.max_frames)

    def mask(self, t: int) -> bytes:
        """The mask of a frame, a palette PNG."""
        if not 0 <= t < len(self._masks):
            raise NotFound(f"mask {t}: there are masks of {len(self._masks)} frames")
        return self._masks[t]


def segment_clip(
    served: Served, clip: Clip, limits: Limits, batcher: Batcher, on_bytes: Callable[[int], None]
) -> list[bytes]:
    """Masks of a whole clip, a palette PNG a frame.

    Args:
        served: the model.
        clip: as it was sent.
        limits: of what is taken.
        batcher: runs its steps, with those of others.
        on_bytes: hears after each frame what is held; may raise, and so end it.

    Raises:
        Refused: naming the frame or mask that cannot be used.
    """
    stream = Stream(served, limits, batcher)
    answers = []
    for t, frame in enumerate(clip.frames):
        if t in clip.masks:
            stream.put_mask(t, clip.masks[t])
        answers.append(stream.put_frame(t, frame))
        on_bytes(stream.bytes)
    if not stream.state["objects"]:
        raise Refused("clip: its masks mark no object")
    return answers


def sent_before(t: int, data: bytes, sent: list[str], what: str, most: int) -> bool:
    """Whether this was sent before.

    Raises:
        Conflict: where it is neither that nor the next.
        TooLarge: for more than so many.
    """
    if 0 <= t < len(sent):
        if sent[t] != digest(data):
            raise Conflict(f"{what} {t}: was sent already, with other bytes")
        return True
    if t != len(sent):
        raise Conflict(f"{what} {t}: expected {what} {len(sent)}, which comes next")
    if t >= most:
        raise TooLarge(f"{what} {t}: expected at most {most} {what}s; open another session")
    return False

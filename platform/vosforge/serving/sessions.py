"""One session each: frames that stream, or a clip that a user corrects in rounds.

Requests name the position that they are about. The one that was answered last may be sent again, with the same body,
and has the same answer; so whoever got no answer asks again without knowing how far the first attempt went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vosforge.data.image_files import decode_frame
from vosforge.propagation.segmenter import enlarged_labels, reduced
from vosforge.propagation.session import Session
from vosforge.serving.batching import Batcher
from vosforge.serving.journal import digest
from vosforge.serving.limits import Conflict, Limits, NotFound, Refused, TooLarge
from vosforge.serving.media import Clip, check_objects, read_frame, read_mask, read_scribbles, to_png
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
        if t in self._given and self._given[t][0] == digest(data):
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

    def knows(self, t: int, data: bytes) -> bool:
        """Whether this frame was sent before; a `Conflict` where it is neither that nor the next."""
        return _sent_before(t, data, self._sent, "frame", self._limits.max_frames)

    def mask(self, t: int) -> bytes:
        """The mask of a frame, a palette PNG."""
        if not 0 <= t < len(self._masks):
            raise NotFound(f"mask {t}: there are masks of {len(self._masks)} frames")
        return self._masks[t]


class Interactive:
    """A clip that a user corrects in rounds; see `propagation.session`.

    Frames are kept as they were sent and decoded when a round asks for them.

    Args:
        served: the model.
        limits: of what it takes.
        short_side: pixels to which frames are reduced; None as the model says.

    Attributes:
        progress: frames of the round under way that are segmented, of how many; None between rounds.
        bytes: memory held.
    """

    kind: Kind = "interactive"

    def __init__(self, served: Served, limits: Limits, short_side: int | None = None):
        self.served, self._limits = served, limits
        self._short_side = short_side or served.short_side
        self._size: tuple[int, int] | None = None
        self._sent: list[str] = []
        self._frames: list[bytes] = []
        self._rounds: list[str] = []
        self._session: Session | None = None
        self.progress: tuple[int, int] | None = None
        self.bytes = 0

    @property
    def state(self) -> dict[str, Any]:
        """What is known so far, and how far the round under way is."""
        session, progress = self._session, self.progress
        return {
            "frames": len(self._sent),
            "objects": session.objects if session else [],
            "rounds": len(self._rounds),
            "progress": {"done": progress[0], "total": progress[1]} if progress else None,
        }

    def put_frame(self, t: int, data: bytes) -> bytes:
        """Add the next frame; all are added before the first round.

        Raises:
            Conflict: for another position, one that was sent with another body, or after the first round.
            Refused: for a frame that cannot be used.
        """
        if self.knows(t, data):
            return b""
        if self._session is not None:
            raise Conflict(f"frame {t}: frames are added before the first round; open another session for more")
        size = read_frame(data, f"frame {t}", self._limits).shape[:2]
        if self._size not in (None, size):
            raise Refused(f"frame {t}: the first one is {self._size}, this one {size}")
        self._size = size
        self._sent.append(digest(data))
        self._frames.append(data)
        self.bytes += len(data)
        return b""

    def knows(self, t: int, data: bytes) -> bool:
        """Whether this frame was sent before; a `Conflict` where it is neither that nor the next."""
        return _sent_before(t, data, self._sent, "frame", self._limits.max_frames)

    def knows_round(self, n: int, t: int, kind: str, data: bytes) -> bool:
        """Whether this round is the latest; a `Conflict` where it is neither that nor the next."""
        if n == len(self._rounds) and n and self._rounds[-1] == _round_digest(t, kind, data):
            return True
        if n != len(self._rounds) + 1:
            raise Conflict(f"round {n}: expected round {len(self._rounds) + 1}, which comes next")
        if n > self._limits.max_rounds:
            raise TooLarge(f"round {n}: expected at most {self._limits.max_rounds}; open another session")
        return False

    def put_round(self, n: int, t: int, kind: str, data: bytes) -> bytes:
        """Correct or draw on one frame, and segment all.

        Args:
            n: the round, from 1.
            t: position of the frame that is touched.
            kind: "corrected", by a mask, or "drawn".
            data: a mask, or scribbles as JSON.

        Returns:
            Digest of all masks.

        Raises:
            Conflict: for another round than the next.
            Refused: for a mask or scribbles that cannot be used, or a session without frames.
        """
        if not self.knows_round(n, t, kind, data):
            if not self._frames:
                raise Refused(f"round {n}: the session has no frames yet")
            self._run_round(n, t, kind, data)
        return digest(self._session.masks.tobytes()).encode()

    def _run_round(self, n: int, t: int, kind: str, data: bytes) -> None:
        session = self._session or self._begin()
        known = set(session.objects)
        try:
            if kind == "corrected":
                mask = read_mask(data, f"round {n}, mask", self._limits)
                check_objects(known | {*np.unique(mask).tolist()} - {0}, f"round {n}", self._limits)
                session.correct(t, mask, self._hear)
            else:
                scribbles = read_scribbles(data, f"round {n}, scribbles", self._limits)
                check_objects(known | _drawn_objects(scribbles), f"round {n}", self._limits)
                session.interact(t, scribbles, self._hear)
        except OverflowError as error:
            raise Refused(f"round {n}: expected coordinates in [0, 1], found a number out of range") from error
        finally:
            self.progress = None
        self._session = session
        self._rounds.append(_round_digest(t, kind, data))
        self.bytes = sum(map(len, self._frames)) + session.bytes

    def _begin(self) -> Session:
        model = self.served.drawn_on or self.served.start()
        return Session(model, _Decoded(self._frames), self._short_side, **self.served.options)

    def _hear(self, done: int, total: int) -> None:
        self.progress = (done, total)

    def undo(self, n: int) -> None:
        """Take the latest round back; nothing to do when it was taken back already.

        Raises:
            Conflict: for a round that is not the latest.
        """
        if n == len(self._rounds) + 1:
            return
        if n != len(self._rounds) or not n:
            raise Conflict(f"round {n}: the latest round is {len(self._rounds)}")
        self._session.undo()
        self._rounds.pop()
        self.bytes = sum(map(len, self._frames)) + self._session.bytes

    def mask(self, t: int) -> bytes:
        """The mask of a frame after the latest round, a palette PNG."""
        if self._session is None or not self._rounds:
            raise NotFound(f"mask {t}: there are no masks before the first round")
        if not 0 <= t < len(self._frames):
            raise NotFound(f"mask {t}: there are {len(self._frames)} frames")
        return to_png(self._session.mask(t))


class _Decoded(Sequence[np.ndarray]):
    """Frames that are decoded when asked for; they were checked when they came."""

    def __init__(self, frames: list[bytes]):
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, t: int) -> np.ndarray:
        return decode_frame(self._frames[t], f"frame {t}")


def _sent_before(t: int, data: bytes, sent: list[str], what: str, most: int) -> bool:
    if 0 <= t < len(sent):
        if sent[t] != digest(data):
            raise Conflict(f"{what} {t}: was sent already, with other bytes")
        return True
    if t != len(sent):
        raise Conflict(f"{what} {t}: expected {what} {len(sent)}, which comes next")
    if t >= most:
        raise TooLarge(f"{what} {t}: expected at most {most} {what}s; open another session")
    return False


def _round_digest(t: int, kind: str, data: bytes) -> str:
    return f"{kind} {t} {digest(data)}"


def _drawn_objects(scribbles: Any) -> set[int]:
    """Objects that strokes name, as far as they have the form of strokes; `Session` refuses those of another form."""
    frames = scribbles["scribbles"] if isinstance(scribbles, Mapping) else [scribbles]
    lists = [each for each in frames if isinstance(each, list)] if isinstance(frames, list) else []
    strokes = [stroke for each in lists for stroke in each]
    named = (stroke.get("object_id") for stroke in strokes if isinstance(stroke, Mapping))
    return {k for k in named if type(k) is int and k > 0}


def segment_clip(served: Served, clip: Clip, limits: Limits, batcher: Batcher) -> list[bytes]:
    """Masks of a whole clip, a palette PNG a frame.

    Raises:
        Refused: naming the frame or mask that cannot be used.
    """
    stream = Stream(served, limits, batcher)
    answers = []
    for t, frame in enumerate(clip.frames):
        if t in clip.masks:
            stream.put_mask(t, clip.masks[t])
        answers.append(stream.put_frame(t, frame))
    if not stream.state["objects"]:
        raise Refused("clip: its masks mark no object")
    return answers

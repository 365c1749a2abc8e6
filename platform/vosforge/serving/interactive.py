"""A clip that a user corrects in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vosforge.data.image_files import decode_frame
from vosforge.propagation.session import Session
from vosforge.serving.journal import digest
from vosforge.serving.limits import Conflict, Limits, NotFound, Refused, TooLarge
from vosforge.serving.media import check_objects, read_frame, read_mask, read_scribbles, to_png
from vosforge.serving.models import Served
from vosforge.serving.sessions import Kind, sent_before

# Of a session's memory; the rest is for what rounds find and remember.
_FRAMES_SHARE = 7 / 8


class Interactive:
    """A clip that a user corrects in rounds; see `propagation.session`.

    Frames are kept as they were sent and decoded when a round asks for them. The masks that rounds make of them count
    from the frames on, and a share of the memory is left for what rounds add.

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
            TooLarge: when frames take more than their share of the session's memory.
            Refused: for a frame that cannot be used.
        """
        if self.knows(t, data):
            return b""
        if self._session is not None:
            raise Conflict(f"frame {t}: frames are added before the first round; open another session for more")
        size = read_frame(data, f"frame {t}", self._limits).shape[:2]
        if self._size not in (None, size):
            raise Refused(f"frame {t}: the first one is {self._size}, this one {size}")
        most, found = _FRAMES_SHARE * self._limits.session_mib, self.bytes + len(data) + 2 * size[0] * size[1]
        if found > most * 2**20:
            told = f"expected at most {most:.1f} MiB of frames with their masks, found {found / 2**20:.1f}"
            raise TooLarge(f"frame {t}: {told}; open another session for more, or send smaller ones")
        self._size = size
        self._sent.append(digest(data))
        self._frames.append(data)
        self._count()
        return b""

    def knows(self, t: int, data: bytes) -> bool:
        """Whether this frame was sent before; a `Conflict` where it is neither that nor the next."""
        return sent_before(t, data, self._sent, "frame", self._limits.max_frames)

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
            TooLarge: for a round after which the session would hold too much; it is taken back.
            Refused: for a mask or scribbles that cannot be used, or a session without frames.
        """
        if not self.knows_round(n, t, kind, data):
            if not self._frames:
                raise Refused(f"round {n}: the session has no frames yet")
            self._run_round(n, t, kind, data)
        return digest(*(self._session.mask(frame) for frame in range(len(self._frames)))).encode()

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
        self._count()
        if self.bytes > self._limits.session_mib << 20:
            found = self.bytes / 2**20
            self.undo(n)
            most = self._limits.session_mib
            raise TooLarge(f"round {n}: with it the session would hold {found:.1f} MiB of at most {most}; undo others")

    def _begin(self) -> Session:
        model = self.served.drawn_on or self.served.start()
        return Session(model, _Decoded(self._frames), self._short_side, **self.served.options)

    def _count(self) -> None:
        """Count what is held: the masks, also those of a first round to come, and the copy that every round makes."""
        masks = len(self._frames) * self._size[0] * self._size[1]
        given = 2 * len(self._rounds) * self._size[0] * self._size[1]
        made = self._session.bytes if self._session else masks
        self.bytes = sum(map(len, self._frames)) + made + masks + given

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
        self._count()

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


def _round_digest(t: int, kind: str, data: bytes) -> str:
    return f"{kind} {t} {digest(data)}"


def _drawn_objects(scribbles: Any) -> set[int]:
    """Objects that strokes name, as far as they have the form of strokes; `Session` refuses those of another form."""
    frames = scribbles["scribbles"] if isinstance(scribbles, Mapping) else [scribbles]
    lists = [each for each in frames if isinstance(each, list)] if isinstance(frames, list) else []
    strokes = [stroke for each in lists for stroke in each]
    named = (stroke.get("object_id") for stroke in strokes if isinstance(stroke, Mapping))
    return {k for k in named if type(k) is int and k > 0}

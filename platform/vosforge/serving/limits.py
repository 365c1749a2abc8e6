"""What a server takes of its clients, and how it refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vosforge.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What a server takes of its clients; numbers of sessions and their memory are those of one replica."""

    max_side: int = 1920
    """Pixels of a frame's longer side."""
    max_frames: int = 10_000
    """Frames of a session, or of a clip."""
    max_objects: int = 20
    """Objects of a session, or of a clip."""
    max_rounds: int = 200
    """Rounds of an interactive session that are not undone."""
    max_image_mib: int = 8
    """MiB of one frame, mask or drawing."""
    max_clip_mib: int = 64
    """MiB of a whole clip's body."""
    max_clips: int = 4
    """Whole clips sent or segmented at a time, on all replicas together."""
    max_sessions: int = 32
    """Sessions open on a replica at a time."""
    session_mib: int = 512
    """MiB that a session or a clip may hold: its frames and masks, and what the network remembers."""
    replica_mib: int = 4096
    """MiB that all sessions and clips of a replica may hold."""
    journal_mib: int = 2048
    """MiB of a session's journal, which are all bodies that the session took."""
    journal_entries: int = 30_000
    """Entries of a session's journal: frames, masks, rounds and undoings together."""
    upload_seconds: float = 120.0
    """Seconds in which a request's body has to arrive."""
    idle_seconds: float = 600.0
    """A session without a request for so long is closed, and its journal deleted."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UserError(f"{field.name}: expected more than 0, found {value}")


class Refused(UserError):
    """What a client asked for and does not get.

    Attributes:
        status: HTTP's number for it.
        retry_after: seconds after which the same request may succeed; None where it will not.
    """

    status = 400
    retry_after: int | None = None


class Unauthorised(Refused):
    """Without the token that the server wants."""

    status = 401


class NotFound(Refused):
    """No such session, frame or mask."""

    status = 404


class Slow(Refused):
    """A body that did not arrive in time."""

    status = 408


class Conflict(Refused):
    """Not what comes next in this session."""

    status = 409


class Gone(Refused):
    """A session that was there and cannot be continued."""

    status = 410


class TooLarge(Refused):
    """More than the limits allow, whenever it is asked for."""

    status = 413


class TooMany(Refused):
    """More than there is room for now."""

    status = 429
    retry_after = 30


class Malformed(Refused):
    """Fields of another form than the interface describes."""

    status = 422


class Busy(TooMany):
    """More requests of one session than may wait."""

    retry_after = 1


class Failed(Refused):
    """A fault of the server's own, which sending the same request again does not mend."""

    status = 500


class Unready(Refused):
    """Not answered for a reason that passes; the same request may be sent again."""

    status = 503
    retry_after = 1

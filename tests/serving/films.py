"""Small films, as clients send them."""

from __future__ import annotations

import io
import tarfile

import numpy as np

from vosforge.data.image_files import encode_frame, encode_mask
from vosforge.serving.store import SessionStore


class Film:
    """A square that moves over noise, as a client sends it."""

    def __init__(self, seed: int = 0, length: int = 6, size: tuple[int, int] = (48, 64)):
        rng = np.random.default_rng(seed)
        self.frames, self.masks = [], []
        for t in range(length):
            frame = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
            mask = np.zeros(size, np.uint8)
            area = np.s_[10:30, 6 + 4 * t : 26 + 4 * t]
            frame[area], mask[area] = 190 + 9 * (seed % 6), 1
            self.frames.append(encode_frame(frame))
            self.masks.append(encode_mask(mask))

    def archive(self) -> bytes:
        entries = {f"{t:05d}.jpg": frame for t, frame in enumerate(self.frames)} | {"mask.png": self.masks[0]}
        return tar(entries)


def tar(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def untar(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}


def stream(store: SessionStore, film: Film, first: int = 0, session: str | None = None) -> tuple[str, list[bytes]]:
    """Send a film from some frame on; the session and the masks answered."""
    session = session or store.open("stream")["session"]
    if first == 0:
        store.put_mask(session, 0, film.masks[0])
    return session, [store.put_frame(session, t, film.frames[t]) for t in range(first, len(film.frames))]

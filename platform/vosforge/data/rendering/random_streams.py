"""Random draws that depend on what is drawn, never on when or where."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class RandomStream:
    """Draws for one purpose of one video.

    The key of the Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is the
    SHA-256 of (seed, video, purpose). NumPy freezes the raw words of Philox but not its distributions, so words
    become numbers here. Because every purpose has its own stream, more draws for one leave all others as they are.

    Args:
        seed: the data set's seed, any int.
        video: the video's number within the data set.
        purpose: words and numbers that name what is drawn, such as `("object", 2, "scale")`.
    """

    def __init__(self, seed: int, video: int, *purpose: str | int) -> None:
        digest = hashlib.sha256(repr((int(seed), int(video), *purpose)).encode()).digest()
        self._words = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        return low + (high - low) * ((self._words.random_raw() >> 11) * 2.0**-53)

    def uniforms(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Float64 array of `shape` in [low, high); a longer first axis keeps the leading rows."""
        count = 1
        for length in shape:
            count *= length
        words = self._words.random_raw(count) >> np.uint64(11)
        return (low + (high - low) * (words * 2.0**-53)).reshape(shape)

    def normals(self, shape: tuple[int, ...]) -> np.ndarray:
        """Float64 array of `shape`, nearly normal with variance 1: sums of 12 uniform draws need no logarithm."""
        draws = self.uniforms((*shape, 12), -0.5, 0.5)
        return np.cumsum(draws, axis=-1)[..., -1]

    def integer(self, low: int, high: int) -> int:
        """One integer in low..high, both included."""
        return low + int((high - low + 1) * self.uniform())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.integer(0, len(options) - 1)]


class Streams:
    """The streams of one attempt at a video: `streams("light")` draws its lights."""

    def __init__(self, seed: int, video: int, attempt: int) -> None:
        self._key = (seed, video, attempt)

    def __call__(self, *purpose: str | int) -> RandomStream:
        seed, video, attempt = self._key
        return RandomStream(seed, video, *purpose, *(("attempt", attempt) if attempt else ()))

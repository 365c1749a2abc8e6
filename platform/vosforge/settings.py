"""How models run on videos: what programs have flags for, without the libraries that running takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
Eviction = Literal["oldest", "quality"]


@dataclass(frozen=True)
class Settings:
    """How a model runs on a video. Where there is a default of None, the model's own setting holds."""

    memory_every: int | None = None
    """Every how many frames one stays in memory; by default as the model says, else 5."""
    budget: str | None = None
    """Limit of the memory: frames for objects that entered together, or bytes for all as 512MiB, or unlimited; by
    default as the model says, else 24 frames."""
    eviction: Eviction = "oldest"
    """Which frame leaves a full memory: the oldest, or of networks that assess their masks the one of least quality."""
    precision: Precision | None = None
    """Of the networks; bf16 and fp16 by autocast. By default as they are stored."""
    flip: bool = False
    """Segment every video mirrored, too, and average."""
    scales: tuple[float, ...] = (1.0,)
    """Segment every video at these sizes, and average."""
    refine: bool = False
    """Remove components far from where an object was, and segment small objects again from crops (CAMN, 2.4)."""


AS_SAVED = Settings()
"""Nothing set: everything as the model says."""

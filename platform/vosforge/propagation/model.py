"""A model: one network or an ensemble, as a file or folder that a program can be pointed at."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosforge import networks
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.networks.stacking import StackingNetwork, load_stacking, save_stacking
from vosforge.propagation.ensemble import Ensemble, FlipAndScales, How, check_counts
from vosforge.propagation.memory import parse_budget
from vosforge.propagation.propagator import Propagator
from vosforge.propagation.refinement import Refined
from vosforge.propagation.segmenter import Segmenter
from vosforge.reading import reading
from vosforge.settings import AS_SAVED, Settings
from vosforge.storage import sha256, write_aside

DESCRIPTION = "model.json"
DEFAULT_BUDGET = 24
_STACKING_FILE = "stacking.safetensors"
_HOW = ("average", "vote", "stacking")
BUNDLED = Path(__file__).parent.parent / "weights" / "stm-nano"
"""A small network that travels with the package, so that first masks need no training."""


@dataclass
class Model:
    """Networks with the settings they run under.

    Attributes:
        members: one network, or several whose probabilities are merged at every frame.
        memory_every: every N-th frame stays in memory; one number for all members, or one for each.
        budget: most frames in memory; None keeps all.
        short_side: pixels to which frames are best reduced, near what the members learnt from; None keeps their size.
            Whoever feeds the segmenter does it.
        how: members are merged: "average", "vote", or by a stacking network, as in `Ensemble`.
        counts: how often each member counts; None counts all once.
    """

    members: list[MemoryNetwork]
    memory_every: int | list[int] = 5
    budget: int | None = DEFAULT_BUDGET
    short_side: int | None = None
    how: How | StackingNetwork = "average"
    counts: list[int] | None = None

    def start(self, device: str = "cpu", settings: Settings = AS_SAVED) -> Segmenter:
        """A fresh segmenter for one video; the networks are shared, the memory is not.

        Raises:
            UserError: when there is no such device here, or for settings that do not suit the networks.
        """
        every = self.memory_every if settings.memory_every is None else settings.memory_every
        each = every if isinstance(every, list) else [every] * len(self.members)
        budget = self.budget if settings.budget is None else settings.budget
        segmenters = [
            Propagator(network, own, budget, settings.precision, device, settings.eviction)
            for network, own in zip(self.members, each, strict=True)
        ]
        views = FlipAndScales(settings.flip, settings.scales)
        augment = None if views == FlipAndScales(flip=False) else views
        alone = len(segmenters) == 1 and augment is None
        segmenter = segmenters[0] if alone else Ensemble(segmenters, augment, self.how, self.counts)
        return Refined(segmenter) if settings.refine else segmenter

    @staticmethod
    def load(path: str | Path) -> Model:
        """Load one network's safetensors file, or a folder that `save_model` wrote.

        Raises:
            UserError: when it is neither, its description lacks a field or has one of another form, or a member is
                missing or broken.
        """
        path = Path(path)
        if path.is_file():
            return Model([networks.load(path)])
        if not (path / DESCRIPTION).is_file():
            raise UserError(f"{path}: expected a network's .safetensors file or a folder with {DESCRIPTION}")
        description = _described(path / DESCRIPTION)
        how = description.get("how", "average")
        return Model(
            [networks.load(path / name) for name in description["members"]],
            description["memory_every"],
            description["budget"],
            description.get("short_side"),
            load_stacking(path / _STACKING_FILE) if how == "stacking" else how,
            description.get("counts"),
        )


def model_digest(path: str | Path) -> str:
    """SHA-256 over what a network file, or a folder that `save_model` wrote, computes with.

    Raises:
        UserError: when it is neither, or a member is missing.
    """
    path = Path(path)
    if path.is_file():
        return sha256(path)
    if not (path / DESCRIPTION).is_file():
        raise UserError(f"{path}: expected a network's .safetensors file or a folder with {DESCRIPTION}")
    description = _described(path / DESCRIPTION)
    members = [path / name for name in description["members"]]
    for member in members:
        # Describing it tells whether it is there.
        networks.describe(member)
    parts = [sha256(member) for member in members]
    if description.get("how") == "stacking":
        parts.append(sha256(path / _STACKING_FILE))
    whole = json.dumps({**description, "members": parts}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _described(path: Path) -> dict[str, Any]:
    """What `save_model` wrote about a model, checked field by field."""
    try:
        with reading(path):
            content = json.loads(path.read_bytes())
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected members, memory_every and budget, found a {type(content).__name__}")
    members, every = content.get("members"), content.get("memory_every")
    if not isinstance(members, list) or not members or not all(isinstance(name, str) for name in members):
        raise UserError(f"{path}: members: expected file names, at least one, found {_shown(content, 'members')}")
    each = every if isinstance(every, list) else [every] * len(members)
    if len(each) != len(members) or any(type(own) is not int or own < 1 for own in each):
        expected = "a whole number from 1, or one a member"
        raise UserError(f"{path}: memory_every: expected {expected}, found {_shown(content, 'memory_every')}")
    if content.get("how", "average") not in _HOW:
        raise UserError(f"{path}: how: expected {', '.join(_HOW)}, found {_shown(content, 'how')}")
    side = content.get("short_side")
    if side is not None and (type(side) is not int or side < 16):
        raise UserError(f"{path}: short_side: expected pixels from 16 or null, found {_shown(content, 'short_side')}")
    if "budget" not in content or not isinstance(content["budget"], int | str | None):
        raise UserError(f"{path}: budget: expected a limit or null, found {_shown(content, 'budget')}")
    try:
        parse_budget(content["budget"])
        check_counts(content.get("counts"), len(members))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return content


def _shown(content: dict[str, Any], field: str) -> str:
    return repr(content[field])[:80] if field in content else "none"


def save_model(
    folder: str | Path,
    members: list[Path],
    memory_every: int | list[int] = 5,
    budget: int | None = DEFAULT_BUDGET,
    short_side: int | None = None,
    how: How | StackingNetwork = "average",
    counts: list[int] | None = None,
) -> Path:
    """Gather members' files into one folder; its description is written last.

    Args:
        folder: where to.
        members: network files, at least one.
        memory_every, budget, short_side, how, counts: as in `Model`.

    Returns:
        The folder.

    Raises:
        UserError: when there is no member, or one is no network file.
    """
    if not members:
        raise UserError(f"{folder}: a model needs at least one member")
    folder = Path(folder)
    names = []
    for i, member in enumerate(members):
        networks.describe(member)
        names.append(f"member-{i}.safetensors")
        with write_aside(folder / names[-1]) as aside:
            shutil.copyfile(member, aside)
    description = {"members": names, "memory_every": memory_every, "budget": budget, "short_side": short_side}
    if isinstance(how, StackingNetwork):
        save_stacking(how, folder / _STACKING_FILE)
        description["how"] = "stacking"
    elif how != "average":
        description["how"] = how
    if counts is not None and set(counts) != {1}:
        description["counts"] = counts
    with write_aside(folder / DESCRIPTION) as aside:
        aside.write_text(json.dumps(description, indent=1))
    return folder

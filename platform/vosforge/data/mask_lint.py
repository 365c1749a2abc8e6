"""Mask lint: what the stored masks of a video mean, judged over the whole video, and whether they can be meant.

The field stores masks as palette PNGs, as grey levels, as 0 and 255, and as colours. One frame alone can mislead: a
frame of 0 and 255 is an object in DAVIS 2016 and an empty frame with void elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vosforge.clip import VOID
from vosforge.data.image_files import MOST_GREY_LEVELS, RawMask, are_ids, grey_levels, solid_counts
from vosforge.data.mask_rims import filled, rim_values, without_rims
from vosforge.errors import UserError
from vosforge.pictures import davis_palette

_MOST_NAMED = 8
# A true value fills areas; of a value that only lines others, few pixels have equal neighbours all around.
_SOLID_SHARE, _RIM_SHARE = 0.25, 0.02
# A small object has few such pixels too, but more pixels than any rim has of one value.
_ABOVE_RIMS = 4
# Lossy compression strays this far from black and white, and from a colour in each channel.
_STRAY_LEVELS, _STRAY_COLOUR = 10, 24


@dataclass(frozen=True)
class LintedMasks:
    """The masks of a video as ids.

    Attributes:
        masks: `(H, W)` uint8 each; 0 is background, 255 void; None for a frame without one.
        intact: whether a mask is, pixel for pixel, what its palette file holds.
        notes: what a person should know: void, gaps in ids, colours, repairs.
    """

    masks: list[np.ndarray | None]
    intact: list[bool]
    notes: tuple[str, ...]


def lint_masks(raws: Sequence[RawMask | None], names: Sequence[str], repair: bool = False) -> LintedMasks:
    """Take the stored masks of one video for ids.

    Palette indices and grey levels are ids. Where no mask of the video knows another value than 0 and 255, 255 is
    object 1; elsewhere 255 is void. Colours are indices of the DAVIS palette if all are in it; else black is
    background and the others are numbered as they are first seen, frame by frame and row by row. A mask is
    anti-aliased when its values cannot be ids (see `are_ids`), or some only line others (see `rim_values`).

    Args:
        raws: masks as stored, None for a frame without one.
        names: of the files, for errors.
        repair: give each pixel whose value is none of the video's true ones the nearest true value.

    Raises:
        UserError: naming the file and the values, when masks are anti-aliased and not to be repaired, when repair
            cannot tell which values are true, or when masks hold too many colours or mix palette and colours.
    """
    codings = {raw.coding for raw in raws if raw is not None and raw.pixels.any()}
    if codings == {"palette", "colour"} or len(codings) == 3:
        raise UserError(f"{_first(raws, names, 'colour')}: expected masks of one coding, found palettes and colours")
    if "colour" in codings:
        values, notes = _colours(raws, names, repair)
        stored = [None] * len(values)
    else:
        stored = [raw and raw.pixels for raw in raws]
        values, notes = _levels(raws, names, repair)
    present = sorted({level for mask in values if mask is not None for level in grey_levels(mask)} - {0})
    if present == [VOID]:
        values = [mask if mask is None else (mask == VOID).astype(np.uint8) for mask in values]
        notes += ["palette index 255 alone is taken for object 1"] if "palette" in codings else []
        present = [1]
    notes += _told(values, present)
    intact = [
        raw is not None and raw.coding == "palette" and mask is pixels
        for raw, mask, pixels in zip(raws, values, stored, strict=True)
    ]
    return LintedMasks(values, intact, tuple(notes))


def _told(masks: list[np.ndarray | None], present: list[int]) -> list[str]:
    """Notes on void, gaps and the lack of a background."""
    notes = []
    ids = [k for k in present if k != VOID]
    if VOID in present:
        count = sum(mask is not None and bool((mask == VOID).any()) for mask in masks)
        notes.append(f"void (255) in {count} masks")
    if ids and ids[-1] != len(ids):
        notes.append(f"gaps in ids: {_listed(ids)}")
    there = [mask for mask in masks if mask is not None]
    if len(present) == 1 and present[0] != VOID and all((mask == present[0]).all() for mask in there):
        notes.append(f"every mask is {present[0]} all over, without background")
    return notes


def _levels(
    raws: Sequence[RawMask | None], names: Sequence[str], repair: bool
) -> tuple[list[np.ndarray | None], list[str]]:
    """Palette and grey masks."""
    masks = [raw and raw.pixels for raw in raws]
    bad = [i for i, raw in enumerate(raws) if raw is not None and not _plausible(raw)]
    if not bad:
        bad = _too_many_over_time(raws)
    if not bad:
        return _rims(raws, names, repair)
    solid, counts = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i in bad:
        solid += solid_counts(masks[i])[:256]
        counts += np.bincount(masks[i].ravel(), minlength=256)
    true = np.array([0, VOID]) if _black_and_white(solid, counts) else _true(solid, counts)
    if not repair:
        levels = grey_levels(masks[bad[0]])
        soft = sorted(set(levels) - set(true.tolist())) or levels
        raise UserError(_refusal(names, bad, f"{len(levels)} grey levels", _listed(soft)))
    ids = [int(k) for k in true if 0 < k < VOID]
    if len(true) < 2 or (VOID in true and ids and ids[-1] >= MOST_GREY_LEVELS):
        raise UserError(
            f"{names[bad[0]]}: expected areas of ids under the soft rims, found areas of {_listed(true.tolist())}; "
            "these masks cannot be repaired, store ids 1, 2, ... instead"
        )
    return _repaired(masks, true, np.arange(256, dtype=np.uint8))


def _rims(
    raws: Sequence[RawMask | None], names: Sequence[str], repair: bool
) -> tuple[list[np.ndarray | None], list[str]]:
    """Masks whose values may all be ids, unless some are rims between others."""
    masks = [raw and raw.pixels for raw in raws]
    rims = rim_values([raw.pixels for raw in raws if raw is not None and raw.coding != "drawn"])
    if not rims:
        return masks, []
    bad = [i for i, mask in enumerate(masks) if mask is not None and np.isin(mask, rims).any()]
    if not repair:
        raise UserError(_refusal(names, bad, "values that only line others", _listed(rims)))
    return _counted(masks, [without_rims(mask, rims) if i in bad else mask for i, mask in enumerate(masks)])


def _plausible(raw: RawMask) -> bool:
    if raw.coding == "drawn":
        return True
    levels = grey_levels(raw.pixels)
    if raw.coding == "grey":
        return are_ids(raw.pixels, levels)
    if len(levels) <= MOST_GREY_LEVELS:
        return True
    # Indices that were interpolated: most of so many ids are nothing but rims.
    solid = solid_counts(raw.pixels)[:256] > 0
    return 2 * int(solid.sum()) >= len(levels)


def _true(solid: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values that stand for something, by how many pixels they have and how many of those lie among equals."""
    rims = counts[solid < _RIM_SHARE * counts]
    small = (solid > 0) & (counts > _ABOVE_RIMS * rims.max(initial=0))
    return np.flatnonzero((counts > 0) & ((solid >= _SOLID_SHARE * counts) | small))


def _apart(true: np.ndarray, counts: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """True colours without those that lossy compression made of a more frequent one."""
    kept: list[int] = []
    for i in sorted(true.tolist(), key=lambda i: -counts[i]):
        if all(np.abs(channels[i] - channels[k]).max() > _STRAY_COLOUR for k in kept):
            kept.append(i)
    return np.array(sorted(kept), np.int64)


def _black_and_white(solid: np.ndarray, counts: np.ndarray) -> bool:
    """Whether levels are those of one object under lossy compression: nearly all near 0 or 255, and no area between."""
    dark, white = counts[: _STRAY_LEVELS + 1].sum(), counts[VOID - _STRAY_LEVELS :].sum()
    between = solid[1 : VOID - _STRAY_LEVELS].sum()
    return bool(white and dark + white >= 0.9 * counts.sum() and between < 0.1 * white)


def _too_many_over_time(raws: Sequence[RawMask | None]) -> list[int]:
    """Grey masks of a video with more levels than ids can have, although each mask alone has not."""
    grey = [i for i, raw in enumerate(raws) if raw is not None and raw.coding == "grey"]
    levels = {level for i in grey for level in grey_levels(raws[i].pixels)}
    return grey if len(levels) > MOST_GREY_LEVELS else []


def _colours(
    raws: Sequence[RawMask | None], names: Sequence[str], repair: bool
) -> tuple[list[np.ndarray | None], list[str]]:
    """Masks whose colours stand for ids."""
    codes = [None if raw is None else _packed(raw) for raw in raws]
    seen = _first_seen([code for code in codes if code is not None])
    palette = {int(red) << 16 | int(green) << 8 | int(blue): k for k, (red, green, blue) in enumerate(davis_palette())}
    if set(seen) <= set(palette):
        chosen, notes = {code: palette[code] for code in seen}, ["colours are those of the DAVIS palette"]
        return _indexed(codes, chosen), notes
    if len(seen) > 65535:
        raise UserError(_refusal(names, _present(codes), f"{len(seen)} colours", _hex(seen)))
    numbered = [None if code is None else _numbered(code, seen) for code in codes]
    solid, counts = np.zeros(len(seen), np.int64), np.zeros(len(seen), np.int64)
    for mask in numbered:
        if mask is not None:
            solid += _sized(solid_counts(mask), len(seen))
            counts += _sized(np.bincount(mask.ravel()), len(seen))
    codes_seen = np.array(seen)
    channels = np.stack([codes_seen >> 16, codes_seen >> 8 & 255, codes_seen & 255], axis=1)
    true = _apart(_true(solid, counts), counts, channels)
    soft = [code for i, code in enumerate(seen) if i not in set(true.tolist())]
    notes: list[str] = []
    if soft or len(seen) > MOST_GREY_LEVELS:
        where = [i for i, code in enumerate(codes) if code is not None and np.isin(code, soft or seen).any()]
        if not repair:
            raise UserError(_refusal(names, where, f"{len(seen)} colours", _hex(soft or seen)))
        if not 2 <= len(true) <= MOST_GREY_LEVELS:
            raise UserError(
                f"{names[where[0]]}: expected areas of a few colours under the soft rims, found {len(true)}; "
                "these masks cannot be repaired"
            )
        numbered, notes = _repaired(numbered, true, _near_colours(channels, true))
    kept = [seen[i] for i in true]
    if set(kept) <= set(palette):
        ids = {i: palette[seen[i]] for i in true.tolist()}
        notes.append("colours are those of the DAVIS palette")
    else:
        shown = [i for i in true.tolist() if seen[i] != 0]
        ids = {i: k for k, i in enumerate(shown, 1)} | {i: 0 for i in true.tolist() if seen[i] == 0}
        notes.append("colours are numbered as first seen: " + ", ".join(f"#{seen[i]:06x} = {ids[i]}" for i in shown))
    return _indexed(numbered, ids), notes


def _packed(raw: RawMask) -> np.ndarray:
    """Colours as 0xRRGGBB; a grey level is a colour of equal channels."""
    return raw.pixels if raw.coding == "colour" else raw.pixels.astype(np.uint32) * 0x010101


def _first_seen(codes: list[np.ndarray]) -> list[int]:
    """All colours of a video in the order in which a reader of its frames meets them."""
    seen: dict[int, None] = {}
    for code in codes:
        colours, first = np.unique(code, return_index=True)
        seen.update(dict.fromkeys(colours[np.argsort(first)].tolist()))
    return list(seen)


def _numbered(code: np.ndarray, seen: list[int]) -> np.ndarray:
    """Each colour's place in `seen`, `(H, W)` uint16."""
    order = np.argsort(seen)
    return order[np.searchsorted(np.array(seen), code, sorter=order)].astype(np.uint16)


def _indexed(codes: list[np.ndarray | None], ids: dict[int, int]) -> list[np.ndarray | None]:
    known = np.array(sorted(ids))
    values = np.array([ids[int(code)] for code in known], np.uint8)
    return [None if code is None else values[np.searchsorted(known, code)] for code in codes]


def _near_colours(channels: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Of each colour the true one that it nearly is; itself when it is nearly none."""
    near = np.arange(len(channels), dtype=np.uint16)
    for i in true:
        near[np.abs(channels - channels[i]).max(axis=1) <= 2 * _STRAY_COLOUR] = i
    near[true] = true
    return near


def _repaired(
    masks: list[np.ndarray | None], true: np.ndarray, near: np.ndarray
) -> tuple[list[np.ndarray | None], list[str]]:
    """Masks of true values only, and how many pixels of how many masks that took.

    Args:
        masks: `(H, W)` each.
        true: values that stay.
        near: what to take each value for at first.
    """
    return _counted(masks, [None if mask is None else _nearest(near[mask], true) for mask in masks])


def _counted(
    masks: list[np.ndarray | None], repaired: list[np.ndarray | None]
) -> tuple[list[np.ndarray | None], list[str]]:
    """Repaired masks, those that did not change as they were, and a note of how many did."""
    changed = [0 if a is None else int((a != b).sum()) for a, b in zip(masks, repaired, strict=True)]
    repaired = [a if count == 0 else b for a, b, count in zip(masks, repaired, changed, strict=True)]
    count = sum(pixels > 0 for pixels in changed)
    return repaired, [f"{count} masks repaired, {sum(changed)} pixels set to the nearest id"]


def _nearest(mask: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Nearest true value: of two levels by value, which is a threshold; of several by place."""
    lost = ~np.isin(mask, true)
    if not lost.any():
        return mask
    if lost.all() or true.tolist() == [0, VOID]:
        distances = np.abs(mask[..., None].astype(np.int32) - true.astype(np.int32))
        return true[distances.argmin(axis=-1)].astype(mask.dtype)
    return filled(mask, lost)


def _refusal(names: Sequence[str], bad: list[int], found: str, values: str) -> str:
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return (
        f"{names[bad[0]]}{more}: expected object ids, found {found} ({values}): an anti-aliased mask; "
        "threshold it, or repair with --repair-masks"
    )


def _first(raws: Sequence[RawMask | None], names: Sequence[str], coding: str) -> str:
    return next(name for raw, name in zip(raws, names, strict=True) if raw is not None and raw.coding == coding)


def _present(masks: Sequence[np.ndarray | None]) -> list[int]:
    return [i for i, mask in enumerate(masks) if mask is not None]


def _sized(counts: np.ndarray, size: int) -> np.ndarray:
    return np.pad(counts[:size], (0, max(0, size - len(counts))))


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:_MOST_NAMED])) + (", ..." if len(values) > _MOST_NAMED else "")


def _hex(codes: Sequence[int]) -> str:
    return ", ".join(f"#{code:06x}" for code in codes[:_MOST_NAMED]) + (", ..." if len(codes) > _MOST_NAMED else "")

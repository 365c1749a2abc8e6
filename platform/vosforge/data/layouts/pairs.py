"""Plain pairs: a folder or file of frames and a folder of masks, for one video or many."""

from __future__ import annotations

from pathlib import Path

from vosforge.data.layouts.files import FilmFrames, FolderFiles, shared_names
from vosforge.data.layouts.listing import (
    MASK_SUFFIXES,
    Wanted,
    are_photographs,
    folder_video,
    folders_in,
    in_sequence,
    listed,
    names_in,
    refuse_split,
    stem,
    without_duplicates,
)
from vosforge.data.layouts.stills import pair_folders
from vosforge.data.layouts.video import Recognised, SourceVideo
from vosforge.data.video_files import VIDEO_SUFFIXES, VideoFile
from vosforge.errors import UserError

_FRAMES = ("frames", "rgb", "JPEGImages", "images", "imgs")
_MASKS = ("masks", "mask", "Annotations", "annotations", "gt", "labels")


def find_pairs(wanted: Wanted) -> Recognised | None:
    """The videos of a root that holds frames and masks for one video or a folder for each, or films; or None.

    Raises:
        UserError: for a split, or a film that does not decode.
    """
    for layout, find in (("by-video", _by_video), ("pair", _pair), ("films", _films)):
        if wanted.allows(layout) and wanted.root.is_dir():
            found = find(wanted)
            if found is not None:
                refuse_split(wanted, layout)
                return found
    return None


def pair_videos(frames: Path, masks: Path, dataset: str | None = None, licence: str = "") -> Recognised:
    """The videos of frames and masks that the user names.

    Args:
        frames: a folder of frames or a video file, for one video; or a folder of such folders or files.
        masks: a folder of PNGs named as the frames (by their numbers, for a video file); or a folder of such folders,
            named as the videos. The masks say which videos are taken.
        dataset: name in the shards; the masks' folder when left out.
        licence: stored with every frame.

    Raises:
        UserError: when one is missing, or they are no pair.
    """
    for path, what in ((frames, "video file or folder of frames"), (masks, "folder of masks")):
        if not path.exists() or (what == "folder of masks" and not path.is_dir()):
            raise UserError(f"{path}: no such {what}")
    wanted = Wanted(masks, "pair", None, licence, dataset or masks.resolve().name)
    if frames.is_file():
        videos = [_film(wanted, frames, masks)]
    elif names_in(frames):
        videos = [folder_video(wanted, _one_name(frames), frames, masks)]
    else:
        videos = _many(wanted, frames, masks)
    kept, taken = without_duplicates(videos, lambda video: video.video_id)
    unusable = [video for video in kept if not len(video.frames)]
    usable = [video for video in kept if len(video.frames)]
    without = sorted({*folders_in(frames), *map(stem, names_in(frames, VIDEO_SUFFIXES))} - {v.video_id for v in videos})
    notes = [f"{len(without)} videos without a folder of masks are left out: {listed(without)}"] if without else []
    reason = f"frames in {frames} and masks in {masks}"
    return Recognised("pair", reason, "videos", usable, taken + unusable, notes)


def _many(wanted: Wanted, frames: Path, masks: Path) -> list[SourceVideo]:
    films = {stem(name): frames / name for name in names_in(frames, VIDEO_SUFFIXES)}
    videos = []
    for name in folders_in(masks):
        inner = masks / name / "Annotations"
        folder = inner if inner.is_dir() else masks / name
        if name in films:
            videos.append(_film(wanted, films[name], folder, name))
        else:
            nested = frames / name / "JPEGImages"
            videos.append(folder_video(wanted, name, nested if nested.is_dir() else frames / name, folder))
    if not any(len(video.frames) for video in videos):
        raise UserError(
            f"{frames} and {masks}: expected frames and masks of one video, or folders of the same names in both; "
            f"found {listed(folders_in(masks)) or 'no folder'} in the second"
        )
    return videos


def _by_video(wanted: Wanted) -> Recognised | None:
    """`<video>/JPEGImages/<frame>.jpg` and `<video>/Annotations/<frame>.png`."""
    found = {name: _inner(wanted.root / name) for name in folders_in(wanted.root)}
    pairs = {name: pair for name, pair in found.items() if pair is not None}
    sequences = [pair for pair in pairs.values() if in_sequence(names_in(pair[0])) or len(names_in(pair[0])) == 1]
    if not pairs or (wanted.layout == "auto" and len(sequences) < 0.5 * len(pairs)):
        return None
    videos = [folder_video(wanted, name, *pair) for name, pair in pairs.items()]
    kept, taken = without_duplicates(videos, lambda video: str(video.frames.folder))
    first = next(iter(pairs.values()))
    others = [name for name in found if name not in pairs]
    notes = [f"folders without frames and masks are left out: {listed(others)}"] if others else []
    reason = f"a folder for each video, with {first[0].name}/ and {first[1].name}/"
    return Recognised("by-video", reason, "videos", kept, taken, notes)


def _inner(folder: Path) -> tuple[Path, Path] | None:
    for frames in _FRAMES:
        for masks in _MASKS:
            if (folder / masks).is_dir() and names_in(folder / frames):
                return folder / frames, folder / masks
    return None


def _pair(wanted: Wanted) -> Recognised | None:
    """One video: `frames/` and `masks/`, or `JPEGImages/` and `Annotations/` with frames in sequence."""
    pair = _inner(wanted.root)
    if pair is None:
        return None
    frames, masks = pair
    names = names_in(frames)
    stills_too = pair_folders(wanted.root) is not None
    photographs = not in_sequence(names) or frames.name in ("images", "imgs") or are_photographs(frames, names)
    if wanted.layout == "auto" and stills_too and photographs:
        return None
    video = folder_video(wanted, _one_name(frames), frames, masks)
    reason = f"one video: frames in {frames.name}/, masks in {masks.name}/"
    if stills_too:
        reason += "; numbered in sequence and of one size (--layout static for single images)"
    return Recognised("pair", reason, "videos", [video])


def _films(wanted: Wanted) -> Recognised | None:
    """Video files with masks in `masks/<video>/`, in `<video>/`, or, for a single one, in `masks/`."""
    names = names_in(wanted.root, VIDEO_SUFFIXES)
    if not names:
        return None
    videos, without = [], []
    for name in names:
        places = [*(wanted.root / masks / stem(name) for masks in _MASKS), wanted.root / stem(name)]
        places += [wanted.root / masks for masks in _MASKS] if len(names) == 1 else []
        folder = next((place for place in places if names_in(place, MASK_SUFFIXES)), None)
        if folder is None:
            without.append(name)
        else:
            videos.append(_film(wanted, wanted.root / name, folder))
    if not videos:
        return None
    kept, taken = without_duplicates(videos, lambda video: str(getattr(video.frames, "film", video.video_id)))
    taken += [video for video in kept if not len(video.frames)]
    notes = [f"no masks for {listed(without)}"] if without else []
    reason = f"video files with masks in folders beside them ({videos[0].masks.folder.relative_to(wanted.root)}/)"
    return Recognised("films", reason, "videos", [video for video in kept if len(video.frames)], taken, notes)


def _film(wanted: Wanted, film: Path, masks: Path, name: str | None = None) -> SourceVideo:
    """A video file and a folder of masks named by the frames' numbers, from 0, or from 1 as ffmpeg numbers them."""
    video_id, mask_names = name or film.stem, names_in(masks, MASK_SUFFIXES)
    try:
        count = len(VideoFile(film))
    except UserError as error:
        return SourceVideo(wanted.dataset, video_id, (), FolderFiles(masks, ()), wanted.licence, str(error))
    numbers = {int(digits): mask for mask in mask_names if (digits := _digits(stem(mask)))}
    first = 1 if numbers and 0 not in numbers and max(numbers) == count else 0
    lost = sorted(k for k in numbers if not 0 <= k - first < count)
    problem = (
        f"{masks}: masks without a frame: {listed([numbers[k] for k in lost])}; {film} has {count}" if lost else ""
    )
    unnamed = [mask for mask in mask_names if not _digits(stem(mask))]
    if unnamed:
        problem = f"{masks}: expected masks named by the number of their frame, found {listed(unnamed)}"
    notes = ("masks are numbered from 1",) if first else ()
    if not first and 1 in numbers and 0 not in numbers:
        notes = (f"masks 1 to {max(numbers)} of {count} frames: taken as numbered from 0",)
    found = shared_names(tuple(numbers.get(i + first) for i in range(count)))
    return SourceVideo(
        wanted.dataset, video_id, FilmFrames(film, count), FolderFiles(masks, found), wanted.licence, problem, notes
    )


def _digits(text: str) -> str:
    """The number at a name's end."""
    return text[len(text.rstrip("0123456789")) :]


def _one_name(frames: Path) -> str:
    """Of one video: its folder's name, or that of the folder around `frames/` and the like."""
    folder = frames.resolve()
    return folder.parent.name if folder.name in _FRAMES else folder.name

"""The whole chain at nano size on this machine: from photographs to a registered network that segments a clip.

    python jobs/demo.py                      (or: make demo)
    python jobs/demo.py --data path/to/DAVIS

Every link is one of vosforge's own programs, run as its user would; the commands are printed. Links that are
finished are not run again.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import numpy as np
import ray
import skimage.data
import tyro
from PIL import Image

import vosforge
from vosforge import cluster, pictures
from vosforge.data.image_files import encode_frame, encode_mask
from vosforge.data.layouts import find_videos
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation.report import table
from vosforge.outputs import lasting
from vosforge.registry import version_uri
from vosforge.storage import check_space, check_writable, write_bytes
from vosforge.tracking import default_store

REPOSITORY = Path(__file__).resolve().parent.parent
# Training never sees these, nor pictures made from them.
HELD_OUT = ("chelsea", "coffee", "rocket")
TEXTURES = ("brick", "grass", "gravel")
DONE_FILE = "links.json"
_NEEDED_DISK = 1_000_000_000
_COLUMNS = ["set", "method", "J", "F", "J&F", "objects", "frames/s"]


@dataclass(frozen=True)
class Link:
    """One link of the chain: a name, what it does in words, and a program's command or a function of this file."""

    name: str
    says: str
    run: str | partial[None]


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    clips_per_image: int = 60
    rendered: int = 240
    tested: int = 24
    steps: int | None = None
    search_steps: int = 120
    trials: int = 3


QUICK = Scale(clips_per_image=2, rendered=8, tested=5, steps=4, search_steps=3, trials=2)


def main(
    out: Path | None = None,
    data: Path | None = None,
    fresh: bool = False,
    quick: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
) -> None:
    """Run the whole chain: ingest, build, train, search, ensemble, evaluate, register, segment.

    Args:
        out: Folder of everything that is made; runs/demo, or runs/demo-quick with --quick.
        data: A DAVIS folder to evaluate on as well.
        fresh: Start over, forgetting finished links.
        quick: A few steps of everything, to see that it works; the masks will be poor.
        dry_run: Print the commands and stop.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    out = Path(lasting(out or ("runs/demo-quick" if quick else "runs/demo"), "--out"))
    if data is not None:
        find_videos(data, split="val")
    links = chain(out, data, QUICK if quick else Scale())
    if dry_run:
        for link in links:
            print(f"{link.name}: {link.says}\n    {shown(link)}")
        return
    if fresh:
        forget(out)
    check_writable(out)
    check_space(out, _NEEDED_DISK)
    os.environ.setdefault("MLFLOW_TRACKING_URI", default_store(out))
    done_file = out / DONE_FILE
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    other = [link.name for link in links if done.get(link.name, {}).get("command", shown(link)) != shown(link)]
    if other:
        raise UserError(f"{out}: link {other[0]} was run with other options; add --fresh or choose another --out")
    started = time.monotonic()
    try:
        for number, link in enumerate(links, 1):
            head = f"[{number}/{len(links)}] {link.name}: {link.says}"
            if link.name in done:
                print(f"{head} - done before", flush=True)
                continue
            print(f"\n{head}\n    {shown(link)}", flush=True)
            begun = time.monotonic()
            perform(link)
            done[link.name] = {"command": shown(link), "seconds": round(time.monotonic() - begun, 1)}
            write_bytes(done_file, json.dumps(done, indent=1).encode())
    finally:
        ray.shutdown()
    write_report(out, done, time.monotonic() - started)


def forget(out: Path) -> None:
    """Delete what an earlier call made, and nothing that is not the demo's."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / DONE_FILE).is_file():
        raise UserError(f"{out}: holds files, but no {DONE_FILE} of the demo; --fresh deletes only what the demo made")
    shutil.rmtree(out)


def chain(out: Path, data: Path | None, scale: Scale) -> list[Link]:
    """The links in order; all but four are commands."""
    o = shlex.quote(str(out))
    shards, tests, trained = f"{o}/shards", f"{o}/shards/test", f"{o}/runs/stm-nano/network.safetensors"
    models = f"--model stm-nano={trained} best-trial={o}/runs/search/network.safetensors ensemble={o}/ensemble"
    small = "--frames 8 --height 128 --width 128"
    steps = f" --steps {scale.steps}" if scale.steps else ""
    real = "" if data is None else shlex.quote(str(data.resolve()))
    held_out = f"{o}/photographs/held-out"
    links = [
        Link("photographs", "write scikit-image's photographs and our masks", partial(write_photographs, out)),
        Link("ingest", "photographs to shards",
             f"datasets/ingest.py --root {o}/photographs/train --out {shards}/photographs"),
        Link("pseudo-video", "clips of three frames from still images",
             f"datasets/pseudo_video.py --data {shards}/photographs --out {shards}/pseudo-video "
             f"--clips-per-image {scale.clips_per_image} --size 128"),
        Link("rendered", "videos of rendered objects",
             f"datasets/bl30k.py --videos {scale.rendered} --out {shards}/rendered {small} --speed 4 "
             f"--textures {o}/textures"),
        Link("validation", "rendered videos to choose by",
             f"datasets/bl30k.py --videos {scale.tested} --out {shards}/validation {small} --speed 8 --seed 1"),
        Link("test-rendered", "rendered videos that nothing is trained on or chosen by",
             f"datasets/bl30k.py --videos {scale.tested} --out {tests}/rendered {small} --speed 8 --seed 2"),
        Link("test-photographs", "clips from photographs that nothing is trained on",
             f"datasets/pseudo_video.py --images {held_out}/images --masks {held_out}/masks --out {tests}/photographs "
             f"--clips-per-image {scale.tested // 3} --size 128 --frames 8 --drift 0.05 --paste-drift 0.08 --seed 3"),
        Link("train", "STM nano through two stages on Ray Train",
             f"jobs/train.py --network stm --size nano --stages images bl30k "
             f"--data {shards}/pseudo-video {shards}/rendered --storage {o}/runs{steps}"),
        Link("search", f"{scale.trials} trials with Ray Tune, each from the trained network",
             f"tuning/stm.py --trials {scale.trials} --data {shards}/pseudo-video {shards}/rendered "
             f"--validation {shards}/validation --initial {trained} --steps {scale.search_steps} --scheduler none "
             f"--storage {o}/runs --name search"),
        Link("ensemble", "trials that add to each other as one model",
             f"tuning/ensemble.py --sweeps {o}/runs/search --members {scale.trials} --out {o}/ensemble"),
        Link("evaluate", "J and F on held-out clips, beside baselines",
             f"jobs/evaluate.py --truth {tests}/photographs {tests}/rendered {models} --json {o}/evaluation.json"),
        Link("evaluate-real", "J and F on real video, frames reduced to 128 pixels",
             f"jobs/evaluate.py --truth {real} --split val --protocol davis2016 --short-side 128 {models} "
             f"--json {o}/evaluation-real.json"),
        Link("register", "the ensemble in MLflow's registry",
             f"jobs/register.py --model {o}/ensemble --name vosforge-demo --alias champion "
             f"--report {o}/evaluation.json --method ensemble --set rendered --store-folder {o}"),
        Link("clip", "a held-out clip as frames and a first mask", partial(write_clip, out)),
        Link("segment", "the registered model, in a fresh process",
             f"jobs/segment.py --model models:/vosforge-demo@champion --video {o}/clip/frames "
             f"--mask {o}/clip/first-mask.png --out {o}/masks --overlay --fps 4"),
        Link("pictures", "overlay video and contact sheet", partial(write_pictures, out)),
    ]  # fmt: skip
    return [link for link in links if data is not None or link.name != "evaluate-real"]


def shown(link: Link) -> str:
    """The link's command as a user would type it at the repository's root."""
    if callable(link.run):
        return f"({link.run.func.__name__} of jobs/demo.py)"
    return f"python {link.run}".replace(f"{REPOSITORY}/", "")


def perform(link: Link) -> None:
    """Run a link; a program runs in a process of its own, on this process's Ray cluster."""
    if callable(link.run):
        link.run()
        return
    cluster.connect()
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        # Threads that wait actively bring a busy machine of two cores to a standstill.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    path, *arguments = shlex.split(link.run)
    process = subprocess.Popen([sys.executable, str(REPOSITORY / path), *arguments], env=environment)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        # The program got the same Ctrl-C; let it put its work in order.
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if status:
        raise UserError(f"link {link.name} failed with status {status}; its message stands above")


def write_photographs(out: Path) -> None:
    """Photographs of scikit-image's package with this repository's masks, and its textures."""
    for path in sorted((REPOSITORY / "datasets" / "photographs").glob("*.png")):
        folder = out / "photographs" / ("held-out" if path.stem in HELD_OUT else "train")
        write_bytes(folder / "images" / f"{path.stem}.jpg", encode_frame(photograph(path.stem)))
        write_bytes(folder / "masks" / path.name, path.read_bytes())
    for name in TEXTURES:
        write_bytes(out / "textures" / f"{name}.jpg", encode_frame(photograph(name)))


def photograph(name: str) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB of scikit-image's photograph of that name."""
    picture = getattr(skimage.data, name)()
    left = picture[0] if isinstance(picture, tuple) else picture
    return np.asarray(Image.fromarray(left).convert("RGB"))


def write_clip(out: Path) -> None:
    """The first clip of the photographs that training never saw, as a user would bring it."""
    shards = ShardSet(str(out / "shards" / "test" / "photographs"))
    clip = shards.read(shards.videos[0])
    for name, frame in zip(clip.frame_ids, clip.frames, strict=True):
        write_bytes(out / "clip" / "frames" / f"{name}.jpg", encode_frame(frame))
    write_bytes(out / "clip" / "first-mask.png", encode_mask(clip.masks[0]))


def write_pictures(out: Path) -> None:
    """The segmented clip beside its truth."""
    shards = ShardSet(str(out / "shards" / "test" / "photographs"))
    clip = shards.read(shards.videos[0])
    masks = [np.asarray(Image.open(out / "masks" / f"{name}.png")) for name in clip.frame_ids]
    rows = [("frames", list(clip.frames))]
    for caption, labels in (("truth", clip.masks), ("segmented by models:/vosforge-demo@champion", masks)):
        rows.append((caption, [pictures.overlay(f, m) for f, m in zip(clip.frames, labels, strict=True)]))
    pictures.write_png(out / "sheet.png", pictures.contact_sheet(rows, height=128))
    shutil.copyfile(out / "masks" / "overlay.mp4", out / "overlay.mp4")


def write_report(out: Path, done: dict[str, Any], seconds: float) -> None:
    """report.json, report.md and the table on the terminal."""
    sets: dict[str, Any] = {}
    for path in sorted(out.glob("evaluation*.json")):
        for name, methods in json.loads(path.read_text())["sets"].items():
            sets[name] = {m: {k: v for k, v in result.items() if k != "scores"} for m, result in methods.items()}
    packages = ("torch", "ray", "mlflow", "numpy", "opencv-python", "timm", "optuna", "numba", "pyarrow")
    report = {
        "sets": sets,
        "seconds": {name: link["seconds"] for name, link in done.items()},
        "model": version_uri("models:/vosforge-demo@champion", os.environ["MLFLOW_TRACKING_URI"]),
        "tracking_uri": os.environ["MLFLOW_TRACKING_URI"],
        "versions": {"vosforge": vosforge.__version__, "python": sys.version.split()[0]}
        | {package: importlib.metadata.version(package) for package in packages},
    }
    rows = [
        {"set": name, "method": method, "frames/s": f"{result['frames_per_second']:.0f}", **result}
        for name, methods in sets.items()
        for method, result in methods.items()
    ]
    scores = table(rows, _COLUMNS)
    times = table([{"link": name, "seconds": value} for name, value in report["seconds"].items()], ["link", "seconds"])
    write_bytes(out / "report.json", json.dumps(report, indent=1).encode())
    text = f"# The chain, end to end\n\n{scores}\n\n{times}\n\nModel: `{report['model']}`\n\n![](sheet.png)\n"
    write_bytes(out / "report.md", text.encode())
    print(f"\n{scores}\n\n{times}\n")
    print(f"{seconds:.0f} s; report: {out / 'report.md'}, pictures: {out / 'sheet.png'} {out / 'overlay.mp4'}")
    print(
        f"model: {report['model']}, champion; look at it with: mlflow ui --backend-store-uri {report['tracking_uri']}"
    )


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))

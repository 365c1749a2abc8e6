"""Export a model's per-frame functions as ONNX files of fixed shapes.

    python jobs/export.py --model runs/emn-nano/network.safetensors --out onnx --height 240 --width 427 --frames 1 2

Each function is one file; network.json tells their inputs and outputs. An ensemble's members get a folder each.
"""

from __future__ import annotations

from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge.networks import exporting
from vosforge.outputs import lasting_file
from vosforge.registry import load_model
from vosforge.tracking import default_store


def main(
    model: str,
    out: Path,
    height: int = 480,
    width: int = 854,
    objects: int = 1,
    frames: tuple[int, ...] = (1, 2),
    verbose: bool = False,
) -> None:
    """Export a model's per-frame functions as ONNX files of fixed shapes.

    Args:
        model: Network file, model folder or models:/name@alias.
        out: Folder for the files; an earlier export there is replaced.
        height: Of the frames.
        width: Of the frames.
        objects: In the video.
        frames: Numbers of remembered frames, each of which gives a file that reads so many.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    members = load_model(model, default_store()).members
    out = lasting_file(out, "--out")
    folders = [out] if len(members) == 1 else [out / f"member-{i}" for i in range(len(members))]
    for folder in folders:
        exporting.check_ready(folder)
    for network, folder in zip(members, folders, strict=True):
        # ONNX runtimes have no convolutions in float64.
        written = exporting.write_onnx(exporting.export(network.float(), (height, width), objects, frames), folder)
        for function in written["functions"].values():
            takes, gives = (", ".join(tensor["name"] for tensor in function[kind]) for kind in ("inputs", "outputs"))
            print(f"{folder / function['file']}: {takes} -> {gives}")
        print(f"{folder / exporting.DESCRIPTION}: their shapes")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), resumes=False)

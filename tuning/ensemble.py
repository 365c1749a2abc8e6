"""Make one model of a sweep's best trials: their probabilities are averaged at every frame.

python tuning/ensemble.py --sweeps runs/stm-sweep --members 3 --out runs/ensemble
"""

from __future__ import annotations

from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge.propagation import save_model
from vosforge.search.members import best_members
from vosforge.storage import check_writable


def main(sweeps: list[Path], out: Path, members: int = 3, verbose: bool = False) -> None:
    """Make one model of sweeps' best trials.

    Args:
        sweeps: Folders of finished sweeps.
        out: Folder of the model.
        members: Most networks in it.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    chosen = best_members(sweeps, members)
    check_writable(out)
    save_model(out, [trial.network for trial in chosen])
    for trial in chosen:
        print(f"member {trial.name}: validation J&F {trial.score:.3f}, {trial.config}")
    print(f"model: {out}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))

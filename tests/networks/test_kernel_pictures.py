"""What SKN's kernels look like on a photograph: the documentation's own program draws them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PICTURE = "skn-kernels.png"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the documentation's program leaves, and the "picture" that it wrote."""
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "networks.md").read_text(), re.DOTALL)
    (program,) = [text for text in programs if f'"{PICTURE}"' in text]
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "datasets").symlink_to(ROOT / "datasets")
    (folder / "program.py").write_text(program)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = runpy.run_path("program.py")
    return {**names, "picture": np.asarray(Image.open(folder / PICTURE))}


def box(mask: np.ndarray, cells: tuple[int, int]) -> tuple[slice, slice]:
    """The cells that a mask's bounding box touches."""
    rows, columns = np.nonzero(mask)
    high, wide = mask.shape[0] // cells[0], mask.shape[1] // cells[1]
    return (
        slice(rows.min() // high, rows.max() // high + 1),
        slice(columns.min() // wide, columns.max() // wide + 1),
    )


def lies_in(cell: tuple[int, int], area: tuple[slice, slice]) -> bool:
    return all(side.start <= place < side.stop for place, side in zip(cell, area, strict=True))


def test_spatial_kernel_peaks_in_the_object_and_fades_from_it(drawn):
    sck, area = drawn["sck"].numpy(), box(drawn["mask"], drawn["size"])
    assert sck.max() == 1
    assert lies_in(divmod(int(sck.argmax()), sck.shape[1]), area)
    outside = sck.copy()
    outside[area] = 0
    assert outside.max() < sck[area].mean()
    assert sck[0, 0] < 1e-3


def test_constraint_moves_the_best_match_from_another_coin_into_the_object(drawn):
    # The camera moved by less than a cell.
    area = box(drawn["mask"], drawn["size"])
    assert not lies_in(drawn["plain"], area)
    assert lies_in(drawn["best"], area)


def test_reader_weighs_the_cell_as_it_is_drawn(drawn):
    query, (row, column) = drawn["query"], drawn["cell"]
    # Of values that are 1 in one memory cell alone, the read is that cell's weight.
    value = torch.zeros(1, 1, 1, *drawn["size"])
    value[..., row, column] = 1
    with torch.no_grad():
        read = drawn["network"].reader(drawn["key"][:, 0][:, :, None], value, query.key[:, 0], query.previous[:, 0])
    assert np.abs(read[0, 0].numpy() / drawn["w2"].max() - drawn["w2"] / drawn["w2"].max()).max() < 1e-4


def test_gaussian_peaks_at_the_best_match_and_silences_what_is_far(drawn):
    g, best = drawn["g"], drawn["best"]
    assert g.max() == g[best] == 1
    assert (g == 1).sum() == 1
    assert g[-1].max() < 0.05


def test_documentation_shows_the_picture_that_its_program_draws(drawn):
    with Image.open(ROOT / "docs" / "images" / PICTURE) as shown:
        kept = np.asarray(shown.convert("RGB")).astype(int)
    assert kept.shape == drawn["picture"].shape
    assert np.abs(kept - drawn["picture"]).mean() < 5

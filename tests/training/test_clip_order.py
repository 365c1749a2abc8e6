from __future__ import annotations

import pytest

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.training.clip_order import check_clips, clip_numbers


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_slices_make_up_the_global_batch(world):
    for step in (0, 7):
        together = [i for rank in range(world) for i in clip_numbers(step, 8, rank, world)]
        assert together == list(range(step * 8, step * 8 + 8))


def test_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="batch of 8 clips cannot be shared by 3 workers"):
        clip_numbers(0, 8, 0, 3)


def test_clips_out_of_order_are_refused():
    import numpy as np

    clips = [Clip(str(i), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8)) for i in (4, 6)]
    with pytest.raises(RuntimeError, match=r"expected clips \[4, 5\], received \['4', '6'\]"):
        check_clips(clips, range(4, 6))

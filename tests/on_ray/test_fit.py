from __future__ import annotations

import safetensors.torch
import torch

from vosforge.training.loop import fit_locally
from vosforge.training.on_ray import fit


def test_ray_train_gives_the_losses_and_weights_of_the_bare_loop(make_plan, tmp_path):
    plan = make_plan()
    bare, on_ray = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = fit_locally(plan, str(tmp_path / "bare"), lambda m: bare.update({m["step"]: m["loss"]}))
    finally:
        torch.set_num_threads(threads)
    second = fit(plan, str(tmp_path / "ray"), lambda m: on_ray.update({m["step"]: m["loss"]}), threads=1)
    assert on_ray == bare
    assert set(bare) == set(range(1, 9))
    expected, found = safetensors.torch.load_file(first), safetensors.torch.load_file(second)
    assert all(torch.equal(expected[key], found[key]) for key in expected)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from vosforge.clip import Clip
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, build
from vosforge.training import curricula, loop
from vosforge.training.batches import Batch, make_batch
from vosforge.training.checkpoints import Position, load_checkpoint
from vosforge.training.clip_order import stage_sampler
from vosforge.training.curricula import Stage
from vosforge.training.loop import fit_locally, local_feed, train
from vosforge.training.losses import cross_entropy, quality_loss
from vosforge.training.plan import claim_run
from vosforge.training.steps import Diverged, Execution, Optimization


class Stopped(Exception):
    """Stands for a process that ends in the middle."""


def losses_of(plan, storage: Path, stop_after: int | None = None) -> dict[int, float]:
    losses: dict[int, float] = {}

    def on_progress(metrics):
        losses[metrics["step"]] = metrics["loss"]
        if metrics["step"] == stop_after:
            raise Stopped

    if stop_after is None:
        fit_locally(plan, str(storage), on_progress)
    else:
        with pytest.raises(Stopped):
            fit_locally(plan, str(storage), on_progress)
    return losses


def weights(storage: Path, plan) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(storage / plan.name / "network.safetensors")


@pytest.mark.parametrize("stop_after", [3, 5, 7])
def test_stopped_run_goes_on_to_the_same_losses_and_weights(make_plan, tmp_path, stop_after):
    plan = make_plan()
    straight = losses_of(plan, tmp_path / "straight")
    first = losses_of(plan, tmp_path / "stopped", stop_after)
    second = losses_of(plan, tmp_path / "stopped")
    assert set(straight) == set(range(1, 9))
    # Steps after the last checkpoint are computed again, and nothing before it.
    assert min(second) == {3: 4, 5: 5, 7: 7}[stop_after]
    assert {**first, **second} == straight
    expected, found = weights(tmp_path / "straight", plan), weights(tmp_path / "stopped", plan)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_finished_run_is_not_run_again(make_plan, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path)
    assert losses_of(plan, tmp_path) == {}


def test_same_seed_gives_the_same_run_and_another_seed_another(make_plan, tmp_path):
    first, same, other = (losses_of(make_plan(seed=seed), tmp_path / str(i)) for i, seed in enumerate((5, 5, 6)))
    assert first == same
    assert first != other


def test_only_the_latest_checkpoint_is_kept_and_none_is_half_written(make_plan, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path)
    names = sorted(path.name for path in (tmp_path / plan.name).iterdir())
    assert names == ["execution.json", "network.safetensors", "plan.json", "step_00000008"]


def test_gradients_that_are_not_finite_stop_the_run_with_the_stage_and_step(make_plan, tmp_path):
    plan = make_plan(steps=30)
    wild = replace(plan, stages=[replace(stage, learning_rate=1e30, clip_norm=None) for stage in plan.stages])
    with pytest.raises(Diverged, match=r"stage bl30k, step \d+: the gradient is (nan|inf).*lower the learning rate"):
        fit_locally(wild, str(tmp_path), lambda metrics: None)


def test_feed_out_of_order_is_refused(make_plan, tmp_path):
    plan = make_plan()
    honest = loop.local_feed(plan, plan.samplers())

    def swapped(stage, first):
        return (list(reversed(clips)) for clips in honest(stage, first))

    reporter = loop.LocalReporter(tmp_path / "run", lambda metrics: None)
    with pytest.raises(RuntimeError, match="out of order"):
        loop.train(plan, plan.build_network(), swapped, reporter)


def test_checkpoint_of_another_plan_is_refused(make_plan, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path)
    folder = tmp_path / plan.name / "step_00000008"
    assert load_checkpoint(folder, plan.build_network(), plan.digest)[0] == Position(2, 0)
    with pytest.raises(UserError, match="the checkpoint is of another plan"):
        load_checkpoint(folder, plan.build_network(), "0" * 16)


def test_metrics_tell_speed_waiting_and_the_probe(make_plan, tmp_path):
    heard = []
    fit_locally(make_plan(), str(tmp_path), heard.append)
    assert {"stage", "step", "loss", "J", "learning_rate", "clips_per_second", "data_wait"} <= set(heard[0])
    assert [metrics["step"] for metrics in heard if "probe_J" in metrics] == [3, 4, 6, 8]
    assert all(0 <= metrics["data_wait"] <= 1 for metrics in heard)


def test_run_is_not_continued_on_other_data_or_by_the_other_harness(make_plan, build_shards, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path, stop_after=3)
    with pytest.raises(UserError, match="was started with another harness"):
        claim_run(str(tmp_path), plan, "ray")
    clip = ShardSet(plan.data[0]).read(ShardSet(plan.data[0]).videos[0])
    build_shards(plan.data[0], [clip], kind="bl30k")
    with pytest.raises(UserError, match=r"was started with another data_digests\.0"):
        losses_of(plan, tmp_path)


def test_changed_field_of_a_stage_is_named(make_plan, tmp_path):
    plan = make_plan()
    claim_run(str(tmp_path), plan, "local")
    slower = replace(plan, stages=[replace(plan.stages[0], learning_rate=1e-9), plan.stages[1]])
    with pytest.raises(UserError, match=r"another stages\.0\.learning_rate;"):
        claim_run(str(tmp_path), slower, "local")


@pytest.mark.parametrize("name", ["a/../../b", "..", "", "a b"])
def test_names_that_would_leave_the_storage_are_refused(make_plan, name):
    with pytest.raises(UserError, match="run name"):
        make_plan(name=name)


def test_missing_initial_network_is_one_error(make_plan, tmp_path):
    with pytest.raises(UserError, match="no such network file"):
        make_plan(initial=str(tmp_path / "none.safetensors")).build_network()


def test_remote_storage_is_refused_without_ray(make_plan):
    with pytest.raises(UserError, match="leave --local out"):
        fit_locally(make_plan(), "s3://bucket/runs", lambda metrics: None)


def moving_boxes(seed: int, objects: int = 2) -> Clip:
    """Boxes of one colour each, on noise, both there from the start."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8) // 2
    masks = np.zeros((3, 48, 64), np.uint8)
    for k in range(objects):
        colour, (dy, dx), (height, width) = rng.integers(0, 256, 3), rng.integers(-4, 5, 2), rng.integers(8, 20, 2)
        top, left = 10 + rng.integers(0, 12), 8 + 28 * k + rng.integers(0, 6)
        for t in range(3):
            area = np.s_[t, max(0, top + t * dy) : top + t * dy + height, max(0, left + t * dx) : left + t * dx + width]
            frames[area], masks[area] = colour, k + 1
    return Clip(str(seed), frames, masks)


def stage_of(name: str, **changes: object) -> Stage:
    return replace(curricula.stages(name, "nano", ["videos"])[0], **changes)


def losses(network: MemoryNetwork, batch: Batch) -> tuple[float, float]:
    """Segmentation and quality, as the network is now."""
    with torch.no_grad():
        logits, scores = network(batch.frames, batch.first_masks, batch.valid)
    truth = batch.masks[:, 1:]
    return float(cross_entropy(logits, truth)), float(quality_loss(scores, logits, truth, batch.valid))


@pytest.mark.parametrize("quality", ["own", "shared"])
def test_steps_of_a_network_that_assesses_lower_both_losses(quality):
    torch.manual_seed(0)
    network = build("qpm", "nano", quality=quality).train()
    stage = stage_of("qpm", steps=8, learning_rate=5e-4, warm_up=0, power=0.0)
    optimization = Optimization(stage, network, Execution(), "cpu")
    batch = make_batch([moving_boxes(0), moving_boxes(1, objects=1)])
    before = losses(network, batch)
    first, _ = optimization.step(network, batch, 0, [[0], [1]])
    # Scores are worth as much as pixels (QPM, 3.1).
    assert first == pytest.approx(sum(before), rel=1e-4)
    # Not many steps: soon masks improve faster than a head can follow that has learnt how poor they were.
    for step in range(1, 8):
        optimization.step(network, batch, step, [[0], [1]])
    after = losses(network, batch)
    assert after[0] < before[0] / 2
    assert after[1] < before[1] / 2


def photographs(short_side: int) -> list[Clip]:
    """Colour photographs of scikit-image with this repository's masks, made small."""
    stills = []
    for name in ("astronaut", "chelsea", "coffee", "retina"):
        with Image.open(Path(__file__).parents[2] / "datasets" / "photographs" / f"{name}.png") as image:
            mask = np.array(image)
        factor = short_side / min(mask.shape)
        size = round(factor * mask.shape[1]), round(factor * mask.shape[0])
        frame = cv2.resize(getattr(skimage.data, name)(), size, interpolation=cv2.INTER_AREA)
        stills.append(Clip(name, frame[None], cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)[None]))
    return stills


def assessed(network: MemoryNetwork, clips: list[Clip]) -> dict[str, torch.Tensor]:
    """Scores of the true masks of the clips' last frames, of eroded ones and of empty ones, object by object."""
    batch = make_batch(clips)
    ids = torch.arange(1, batch.valid.shape[1] + 1)[:, None, None]
    true = (batch.masks[:, -1:] == ids).float()
    shown = {"true": true, "eroded": -F.max_pool2d(-true, 7, 1, 3), "empty": torch.zeros_like(true)}
    seen = batch.valid & (true.sum(dim=(2, 3)) > 48)
    network.eval()
    with torch.no_grad():
        scores = {kind: network.assess(batch.frames[:, -1], masks)[seen] for kind, masks in shown.items()}
    network.train()
    return scores


def test_curriculum_teaches_scores_that_tell_true_masks_from_corrupted_ones(build_shards, tmp_path):
    (stage,) = curricula.stages("qpm", "nano", ["images"])
    stage = replace(stage, sampling=replace(stage.sampling, crop=(48, 48)))
    sampler = stage_sampler(stage, [build_shards(tmp_path, photographs(128), kind="images")], seed=0)
    torch.manual_seed(0)
    network = build("qpm", "nano").train()
    optimization = Optimization(stage, network, Execution(), "cpu")
    for step in range(80):
        clips = [sampler.clip(stage.batch * step + i) for i in range(stage.batch)]
        optimization.step(network, make_batch(clips), step, [[i] for i in range(stage.batch)])
    scores = assessed(network, [sampler.clip(10**6 + i) for i in range(16)])
    true, eroded, empty = scores.values()
    assert len(true) > 20
    assert true.mean() > 1.2 * eroded.mean()
    assert true.mean() > 2 * empty.mean()
    assert (true > eroded).float().mean() > 0.75
    assert (true > empty).float().mean() > 0.75


def test_notice_that_a_machine_goes_leads_to_one_checkpoint_more(make_plan, tmp_path):
    plan = make_plan(steps=15)
    plan = replace(plan, checkpoint_every=100, probe_clips=0)
    asked, kept = [], []

    class Reporter:
        """Is told of a machine that goes when it is asked for the second time."""

        def log(self, metrics):
            self.step = metrics["step"]

        def checkpoint(self, metrics, name, write):
            kept.append(name)

        def leaving(self):
            asked.append(self.step + 1)
            return len(asked) == 2

    train(plan, plan.build_network(), local_feed(plan, plan.samplers()), Reporter())
    assert asked == [10, 20, 30]
    assert kept == ["step_00000015", "step_00000020", "step_00000030"]

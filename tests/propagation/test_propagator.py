from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.propagation import Ensemble, Model, Propagator, save_model

HEIGHT, WIDTH = 40, 56


def make_network(seed: int = 0):
    torch.manual_seed(seed)
    return networks.build("stm", "nano").eval()


@pytest.fixture
def network():
    return make_network()


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def mask_of(**boxes: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for side, identity in boxes.items():
        mask[5:30, slice(4, 20) if side == "left" else slice(30, 50)] = identity
    return mask


def run(propagator, video: np.ndarray, given: dict[int, np.ndarray]) -> list[torch.Tensor]:
    return [propagator.step(frame, given.get(t)) for t, frame in enumerate(video)]


def test_all_is_background_before_the_first_mask(network):
    propagator = Propagator(network)
    answer = propagator.step(frames(1)[0])
    assert (answer == torch.ones(1, HEIGHT, WIDTH)).all()
    assert (propagator.objects, propagator.memory) == ([], [])


def test_given_frame_answers_the_given_mask_with_its_ids(network):
    propagator = Propagator(network)
    mask = mask_of(left=200, right=5)
    answer = propagator.step(frames(1)[0], mask)
    assert propagator.objects == [5, 200]
    assert (answer[1].numpy() == (mask == 5)).all()
    assert (propagator.labels(answer) == mask).all()


def test_ids_are_kept_and_probabilities_sum_to_one(network):
    propagator = Propagator(network)
    answers = run(propagator, frames(4), {0: mask_of(left=200, right=5)})
    for answer in answers:
        assert answer.shape == (3, HEIGHT, WIDTH)
        assert (answer.sum(dim=0) - 1).abs().max() < 1e-5
        assert set(np.unique(propagator.labels(answer))) <= {0, 5, 200}


def test_late_object_enters_in_the_order_of_ids_with_its_own_memory(network):
    propagator = Propagator(network, memory_every=5)
    answers = run(propagator, frames(9), {0: mask_of(left=7), 3: mask_of(right=2)})
    assert [len(answer) for answer in answers] == [2, 2, 2, 3, 3, 3, 3, 3, 3]
    assert (answers[3][1].numpy() == (mask_of(right=2) == 2)).all()
    assert propagator.objects == [2, 7]
    assert [(m["objects"], m["frames"]) for m in propagator.memory] == [([7], [0, 5, 8]), ([2], [3, 5, 8])]


def test_late_object_wins_its_pixels_from_those_known(network):
    propagator = Propagator(network)
    propagator.step(frames(1)[0], mask_of(left=1, right=2))
    over = np.zeros((HEIGHT, WIDTH), np.uint8)
    over[:, 10:40] = 3
    answer = propagator.step(frames(2)[1], over)
    assert (answer[3].numpy() == (over == 3)).all()
    assert (answer[1:3, :, 10:40] == 0).all()
    assert (answer.sum(dim=0) - 1).abs().max() < 1e-5


def test_mask_corrected_in_the_middle_is_answered_and_changes_what_follows(network):
    video, corrected = frames(6), mask_of(right=1)
    plain = run(Propagator(network), video, {0: mask_of(left=1)})
    mended = run(Propagator(network), video, {0: mask_of(left=1), 3: corrected})
    assert (mended[2] == plain[2]).all()
    assert (mended[3][1].numpy() == corrected).all()
    assert (mended[4] - plain[4]).abs().max() > 1e-4


def test_memory_of_a_long_video_stays_within_its_budget(network):
    propagator = Propagator(network, memory_every=1, budget=4)
    small = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 1
    sizes = set()
    for t, frame in enumerate(small):
        propagator.step(frame, mask if t == 0 else None)
        (bank,) = propagator.memory
        sizes.add(bank["bytes"])
        assert len(bank["frames"]) <= 4
    assert bank["frames"] == [0, 197, 198, 199]
    assert bank["evicted"] == list(range(1, 197))
    assert len(sizes) == 4


def test_memory_without_a_budget_holds_every_fifth_frame(network):
    propagator = Propagator(network)
    run(propagator, frames(13), {0: mask_of(left=1)})
    assert propagator.memory[0]["frames"] == [0, 5, 10, 12]
    assert propagator.memory[0]["evicted"] == []


def test_same_video_gives_the_same_answers_again(network):
    video, given = frames(4), {0: mask_of(left=1)}
    first, second = (run(Propagator(network), video, given) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_uint8_pictures_equal_float_tensors(network):
    video, given = frames(3), {0: mask_of(left=1)}
    tensors = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
    for a, b in zip(run(Propagator(network), video, given), run(Propagator(network), tensors, given), strict=True):
        assert (a - b).abs().max() < 1e-6


def test_masks_may_be_tensors_or_other_whole_numbers(network):
    frame, mask = frames(1)[0], mask_of(left=200)
    for given in (torch.from_numpy(mask), mask.astype(np.int64), mask[:, ::-1][:, ::-1]):
        propagator = Propagator(network)
        assert (propagator.labels(propagator.step(frame, given)) == mask).all()


def test_propagation_equals_the_training_forward(network):
    video, mask = frames(4), mask_of(left=1, right=2)
    clip = torch.from_numpy(video).permute(0, 3, 1, 2)[None].float() / 255
    first = torch.stack([torch.from_numpy(mask == k) for k in (1, 2)])[None].float()
    with torch.no_grad():
        trained = network(clip, first, torch.ones(1, 2, dtype=torch.bool))[0].softmax(dim=1)
    answers = run(Propagator(network, memory_every=1), video, {0: mask})
    assert (torch.stack(answers[1:]) - trained).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            np.zeros((HEIGHT, WIDTH + 8, 3), np.uint8),
            r"frame 1: the video's frames are \(40, 56\), this one is \(40, 64\)",
        ),
        (np.zeros((HEIGHT, WIDTH), np.uint8), r"frame 1: expected \(3, H, W\) float or \(H, W, 3\) uint8"),
        (np.zeros((3, HEIGHT, WIDTH), np.uint8), r"frame 1: expected"),
    ],
)
def test_frame_of_another_form_is_refused_by_its_position(network, second, message):
    propagator = Propagator(network)
    propagator.step(frames(1)[0], mask_of(left=1))
    with pytest.raises(UserError, match=message):
        propagator.step(second)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((HEIGHT, 8), np.uint8), r"frame 0: the mask must have the frame's size \(40, 56\), found \(40, 8\)"),
        (np.full((HEIGHT, WIDTH), 300, np.int64), r"frame 0: the mask must hold whole ids 0\.\.255, .*300"),
        (np.full((HEIGHT, WIDTH), -1, np.int64), r"frame 0: the mask must hold whole ids"),
        (np.full((HEIGHT, WIDTH), 0.5, np.float32), r"frame 0: the mask must hold whole ids"),
    ],
)
def test_mask_of_another_form_is_refused_by_its_position(network, mask, message):
    with pytest.raises(UserError, match=message):
        Propagator(network).step(frames(1)[0], mask)


def test_double_precision_runs_and_agrees(network):
    video, given = frames(3), {0: mask_of(left=1)}
    single = run(Propagator(network), video, given)
    double = run(Propagator(make_network(), precision="fp64"), video, given)
    assert all(answer.dtype == torch.float64 for answer in double)
    assert (single[-1] - double[-1]).abs().max() < 1e-4


def test_bfloat16_runs_and_stays_near(network):
    video, given = frames(3), {0: mask_of(left=1)}
    single, half = (run(Propagator(network, precision=p), video, given)[-1] for p in ("fp32", "bf16"))
    assert half.isfinite().all()
    assert (single - half).abs().mean() < 0.05


def test_unknown_precision_is_refused_with_the_valid_ones(network):
    with pytest.raises(UserError, match="unknown precision 'int8'; valid: fp64, fp32, bf16, fp16"):
        Propagator(network, precision="int8")


def test_ensemble_of_a_network_with_itself_equals_the_network(network):
    video, given = frames(6), {0: mask_of(left=1), 3: mask_of(right=9)}
    single, double = Propagator(network), Ensemble([Propagator(network), Propagator(network)])
    for a, b in zip(run(single, video, given), run(double, video, given), strict=True):
        assert (a - b).abs().max() < 1e-6
    assert single.objects == double.objects == [1, 9]


def test_ensemble_averages_its_members_at_every_frame(network):
    video, given = frames(2), {0: mask_of(left=1)}
    other = make_network(seed=1)
    apart = [run(Propagator(n), video, given)[1] for n in (network, other)]
    together = run(Ensemble([Propagator(network), Propagator(other)]), video, given)[1]
    assert (apart[0] - apart[1]).abs().max() > 1e-3
    assert (together - (apart[0] + apart[1]) / 2).abs().max() < 1e-6


def test_ensemble_without_members_is_refused():
    with pytest.raises(UserError, match="at least one member"):
        Ensemble([])


def test_model_is_loaded_from_a_network_file(network, tmp_path):
    networks.save(network, tmp_path / "stm.safetensors")
    segmenter = Model.load(tmp_path / "stm.safetensors").start()
    video, given = frames(3), {0: mask_of(left=1)}
    expected = run(Propagator(network), video, given)
    assert (run(segmenter, video, given)[-1] - expected[-1]).abs().max() < 1e-6


def test_model_folder_keeps_its_members_and_settings(network, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, member in zip(paths, (network, make_network(seed=1)), strict=True):
        networks.save(member, path)
    model = Model.load(save_model(tmp_path / "model", paths, memory_every=3, budget=None))
    assert (len(model.members), model.memory_every, model.budget) == (2, 3, None)
    weights = [member.query_head.key.weight for member in model.members]
    assert torch.equal(weights[0], network.query_head.key.weight)
    assert not torch.equal(weights[0], weights[1])
    one, two = model.start(), model.start()
    one.step(frames(1)[0], mask_of(left=1))
    assert two.objects == []


def test_what_is_no_model_is_refused_by_name(network, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: expected a network's \.safetensors file or a folder"):
        Model.load(tmp_path)
    with pytest.raises(UserError, match="at least one member"):
        save_model(tmp_path / "model", [])
    networks.save(network, tmp_path / "a.safetensors")
    folder = save_model(tmp_path / "model", [tmp_path / "a.safetensors"])
    (folder / "member-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"member-0\.safetensors: no such network file"):
        Model.load(folder)

from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge import networks
from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.networks.collaborative import CollaborativeParts
from vosforge.propagation import Ensemble, Model, Propagator, save_model, segment_clip

HEIGHT, WIDTH = 40, 56

# These segment all objects together, from one memory.
JOINT = [name for name in networks.NETWORKS if isinstance(networks.preset(name), CollaborativeParts)]
EVERY = pytest.mark.parametrize("name", networks.NETWORKS)
SPACE_TIME = pytest.mark.parametrize("name", [name for name in networks.NETWORKS if name not in JOINT])


def make_network(seed: int = 0, name: str = "stm", **parts: object):
    torch.manual_seed(seed)
    return networks.build(name, "nano", **parts).eval()


@pytest.fixture
def network():
    return make_network()


def frames(count: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_pictures_equal_float_tensors(network, dtype):
    video, given = frames(3), {0: mask_of(left=1)}
    tensors = torch.from_numpy(video).permute(0, 3, 1, 2).to(dtype) / 255
    for a, b in zip(run(Propagator(network), video, given), run(Propagator(network), tensors, given), strict=True):
        assert (a - b).abs().max() < 1e-6


def test_masks_may_be_tensors_or_other_whole_numbers(network):
    frame, mask = frames(1)[0], mask_of(left=200)
    others = [mask.astype(dtype) for dtype in (np.int64, np.int16, np.uint16, np.uint32)]
    for given in (torch.from_numpy(mask), mask[:, ::-1][:, ::-1], *others):
        propagator = Propagator(network)
        assert (propagator.labels(propagator.step(frame, given)) == mask).all()


@EVERY
def test_propagation_equals_the_training_forward(name):
    network = make_network(name=name)
    video, mask = frames(4)[:, :37, :51], mask_of(left=1, right=2)[:37, :51]
    clip = torch.from_numpy(video).permute(0, 3, 1, 2)[None].float() / 255
    first = torch.stack([torch.from_numpy(mask == k) for k in (1, 2)])[None].float()
    with torch.no_grad():
        trained = network(clip, first).logits[0].softmax(dim=1)
    answers = run(Propagator(network, memory_every=1), video, {0: mask})
    assert (torch.stack(answers[1:]) - trained).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("stm", [0, 3, 5, 10, 12]),
        ("emn", [0, 3, 5, 10, 12]),
        ("qpm", [0, 3, 5, 10, 12]),
        ("skn", [0, 3, 5, 10, 12]),
        ("mivos", [0, 3, 5, 10, 12]),
        ("kmn", [0, 3, 5, 10, 12]),
        ("stcn", [0, 3, 5, 10]),
        ("stm-interactive", [0, 3]),
        ("camn", [0, 3, 5, 10, 12]),
        ("cfbi+", [0, 3, 12]),
    ],
)
def test_networks_remember_what_their_papers_do_and_all_given_frames(name, held):
    propagator = Propagator(make_network(name=name))
    run(propagator, frames(13), {0: mask_of(left=1), 3: mask_of(right=1)})
    assert [(bank["objects"], bank["frames"]) for bank in propagator.memory] == [([1], held)]


@pytest.mark.parametrize("policy", ["previous", "every", "ends", "given"])
@EVERY
def test_any_network_can_be_told_what_to_remember(name, policy):
    propagator = Propagator(make_network(name=name, memory_policy=policy), memory_every=3)
    run(propagator, frames(8), {1: mask_of(left=1), 4: mask_of(right=2)})
    kept = {"previous": [3, 6, 7], "every": [3, 6], "ends": [7], "given": []}[policy]
    apart = [[1, *kept], [4, *[t for t in kept if t > 4]]]
    together = [sorted([1, 4, *kept])]
    assert [bank["frames"] for bank in propagator.memory] == (together if name in JOINT else apart)


@pytest.mark.parametrize("siamese", [False, True])
@SPACE_TIME
def test_late_object_is_followed_as_if_the_video_began_with_it(name, siamese):
    # Objects that neither see each other's masks nor share a pixel's probability are segmented apart.
    prior = "none" if networks.preset(name).prior == "none" else "object"
    network = make_network(name=name, memory_input="mask", aggregation="none", siamese=siamese, prior=prior)
    video, late = frames(6, (37, 51)), mask_of(right=2)[:37, :51]
    together = Propagator(network, memory_every=1)
    both = run(together, video, {0: mask_of(left=7)[:37, :51], 3: late})
    alone = run(Propagator(network, memory_every=1), video[3:], {0: late})
    assert together.objects == [2, 7]
    assert all((a[1] - b[1]).abs().max() < 1e-5 for a, b in zip(both[3:], alone, strict=True))
    assert (both[-1][1] - both[-1][2]).abs().max() > 1e-4


@EVERY
def test_objects_that_enter_one_after_the_other_are_all_answered(name):
    propagator = Propagator(make_network(name=name), memory_every=2)
    third = np.zeros((HEIGHT, WIDTH), np.uint8)
    third[32:38, 2:54] = 5
    answers = run(propagator, frames(7), {1: mask_of(left=9), 3: third, 4: mask_of(right=2)})
    assert [len(answer) for answer in answers] == [1, 2, 2, 3, 4, 4, 4]
    assert propagator.objects == [2, 5, 9]
    assert all(answer.isfinite().all() and (answer.sum(dim=0) - 1).abs().max() < 1e-5 for answer in answers)
    assert (answers[4][1].numpy() == (mask_of(right=2) == 2)).all()
    assert [bank["objects"] for bank in propagator.memory] == ([[2, 5, 9]] if name in JOINT else [[9], [5], [2]])


def test_margin_matters_where_there_is_one():
    for size, differs in [((40, 56), False), ((37, 51), True)]:
        video, given = frames(4, size), {0: mask_of(left=1, right=2)[: size[0], : size[1]]}
        with_margin, without = (
            run(Propagator(make_network(name="mivos", memorise_margin=margin)), video, given)[-1]
            for margin in (True, False)
        )
        assert with_margin.shape == without.shape == (3, *size)
        assert bool((with_margin - without).abs().max() > 1e-5) == differs


def test_keys_that_objects_share_take_their_memory_once():
    bytes_of = {}
    for name in ("mivos", "stcn"):
        propagator = Propagator(make_network(name=name))
        propagator.step(frames(1)[0], mask_of(left=1, right=2))
        bytes_of[name] = propagator.memory[0]["bytes"]
    assert bytes_of == {"mivos": 35 * 2 * (32 + 64) * 4, "stcn": 35 * (32 + 2 * 64) * 4}


@EVERY
def test_clip_of_one_frame_is_answered_with_its_mask(name):
    clip = Clip("still", frames(1), mask_of(left=3, right=200)[None])
    assert (segment_clip(Propagator(make_network(name=name)), clip) == clip.masks).all()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((40, 64, 3), np.uint8), r"the video's frames are \(40, 56\), this one is \(40, 64\)"),
        (np.zeros((40, 56), np.uint8), r"expected \(3, H, W\) float or \(H, W, 3\) uint8, found \(40, 56\)"),
        (np.zeros((3, 40, 56), np.uint8), r"expected .* found \(3, 40, 56\) torch.uint8"),
        (np.zeros((40, 56, 3), np.float32), r"expected .* found \(40, 56, 3\) torch.float32"),
        (np.zeros((0, 56, 3), np.uint8), r"expected .* found \(3, 0, 56\)"),
        (torch.zeros(3, 40, 0), r"expected .* found \(3, 40, 0\)"),
        (torch.zeros(1, 3, 40, 56), r"expected .* found \(1, 3, 40, 56\)"),
        (torch.zeros(3, 40, 56, dtype=torch.int64), "expected .* torch.int64"),
        (torch.full((3, 40, 56), float("nan")), r"expected values in \[0, 1\], found nan"),
        (torch.full((3, 40, 56), 200.0), r"expected values in \[0, 1\], found 200 to 200"),
    ],
    ids=lambda value: f"{list(value.shape)}-{value.dtype}" if hasattr(value, "shape") else "",
)
def test_frame_of_another_form_is_refused_by_its_position_and_changes_nothing(network, second, message):
    video, given = frames(2), {0: mask_of(left=1)}
    propagator = Propagator(network)
    propagator.step(video[0], given[0])
    with pytest.raises(UserError, match=f"frame 1: .*{message}"):
        propagator.step(second)
    assert (propagator.step(video[1]) == run(Propagator(network), video, given)[1]).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((HEIGHT, 8), np.uint8), r"the mask must have the frame's size \(40, 56\), found \(40, 8\)"),
        (np.zeros((0, 0), np.uint8), r"the mask must have the frame's size \(40, 56\), found \(0, 0\)"),
        (np.zeros((1, HEIGHT, WIDTH), np.uint8), r"the mask must have the frame's size .* found \(1, 40, 56\)"),
        (np.full((HEIGHT, WIDTH), 300, np.int64), r"the mask must hold whole ids 0\.\.255, .*300"),
        (np.full((HEIGHT, WIDTH), 256, np.int64), r"the mask must hold whole ids 0\.\.255, .*256"),
        (np.full((HEIGHT, WIDTH), 300, np.uint16), r"the mask must hold whole ids 0\.\.255, .*300"),
        (np.full((HEIGHT, WIDTH), -1, np.int64), r"the mask must hold whole ids"),
        (np.full((HEIGHT, WIDTH), 0.5, np.float32), r"the mask must hold whole ids"),
        (np.full((HEIGHT, WIDTH), np.nan), r"the mask must hold whole ids .*nan"),
    ],
    ids=lambda value: f"{list(value.shape)}-{value.dtype}" if hasattr(value, "shape") else "",
)
def test_mask_of_another_form_is_refused_by_its_position(network, mask, message):
    with pytest.raises(UserError, match=f"frame 0: {message}"):
        Propagator(network).step(frames(1)[0], mask)


@EVERY
def test_most_ids_that_a_mask_can_hold_are_followed(name):
    video = frames(2, (16, 16))
    propagator = Propagator(make_network(name=name))
    answers = run(propagator, video, {0: np.arange(256, dtype=np.uint8).reshape(16, 16)})
    assert propagator.objects == list(range(1, 256))
    assert answers[1].shape == (256, 16, 16)
    assert answers[1].isfinite().all()


def test_precision_follows_the_network_unless_it_is_chosen():
    video, given = frames(2), {0: mask_of(left=1)}
    for network, precision, dtype in [
        (make_network(), None, torch.float32),
        (make_network().double(), None, torch.float64),
        (make_network().double(), "fp32", torch.float32),
        (make_network(), "fp64", torch.float64),
    ]:
        before = next(network.parameters()).dtype
        answers = run(Propagator(network, precision=precision), video, given)
        assert {answer.dtype for answer in answers} == {dtype}
        # Others may go on with the network as it was.
        assert next(network.parameters()).dtype == before


def test_double_precision_runs_and_agrees(network):
    video, given = frames(3), {0: mask_of(left=1)}
    single = run(Propagator(network), video, given)
    double = run(Propagator(make_network(), precision="fp64"), video, given)
    assert all(answer.dtype == torch.float64 for answer in double)
    assert (single[-1] - double[-1]).abs().max() < 1e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@EVERY
def test_half_precision_runs_and_stays_near(name, precision):
    network = make_network(name=name)
    video, given = frames(3), {0: mask_of(left=1)}
    single, half = (torch.stack(run(Propagator(network, precision=p), video, given)) for p in ("fp32", precision))
    assert half.isfinite().all()
    # Joint networks remember hard labels: a pixel that rounding moved stays moved.
    near = 1 if name in JOINT else 2
    assert (single - half)[near].abs().mean() < 0.05


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

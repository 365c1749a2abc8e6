"""How a model runs: its own settings, and those that a program's user gives."""

from __future__ import annotations

import pytest
import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.propagation import Ensemble, Model, Propagator, Refined, Segmenter, View, save_model, segment_clip
from vosforge.propagation.memory import parse_budget
from vosforge.settings import AS_SAVED, Settings


@pytest.fixture
def model(nano) -> Model:
    return Model([nano()])


def followed(segmenter: Segmenter, clip) -> list[dict[str, object]]:
    """What is remembered after the whole clip."""
    segment_clip(segmenter, clip)
    return segmenter.memory


@pytest.mark.parametrize(("every", "held"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6, 7]), (None, [0, 5, 7])])
def test_every_how_many_frames_stay_in_memory_is_set(model, noise, every, held):
    (bank,) = followed(model.start(settings=Settings(memory_every=every)), noise(8, 1))
    assert bank["frames"] == held


@pytest.mark.parametrize("budget", [" Unlimited ", "unlimited"])
def test_unlimited_memory_keeps_what_the_models_own_budget_would_drop(nano, noise, budget):
    model, clip = Model([nano()], memory_every=1, budget=3), noise(8, 1)
    assert followed(model.start(), clip)[0]["frames"] == [0, 6, 7]
    assert followed(model.start(settings=Settings(budget=budget)), clip)[0]["frames"] == list(range(8))


def test_budget_of_frames_holds_for_objects_that_entered_together(model, noise):
    banks = followed(model.start(settings=Settings(memory_every=1, budget="4")), noise(9, 2))
    assert [bank["frames"] for bank in banks] == [[0, 6, 7, 8], [1, 6, 7, 8]]
    assert [bank["evicted"] for bank in banks] == [[1, 2, 3, 4, 5], [2, 3, 4, 5]]


def test_budget_of_bytes_holds_for_all_that_is_remembered(model, noise):
    clip = noise(14, 1, (120, 160))
    free, bounded = (
        followed(model.start(settings=Settings(memory_every=1, budget=budget)), clip)[0]
        for budget in ("unlimited", "1MiB")
    )
    assert free["bytes"] > 2**20 >= bounded["bytes"]
    # The budget is used up to the last frame that fits.
    assert bounded["bytes"] + free["bytes"] // 14 > 2**20
    assert (bounded["frames"][0], bounded["frames"][-1]) == (0, 13)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(memory_every=2.5), r"memory_every must be a whole number of at least 1, found 2\.5"),
        (Settings(memory_every=0), "memory_every must be a whole number of at least 1, found 0"),
        (Settings(memory_every="2"), "memory_every must be a whole number of at least 1, found '2'"),
        (Settings(budget="plenty"), "budget must be a number of frames, or bytes .* found 'plenty'"),
        (Settings(budget=""), "budget must be a number of frames, or bytes .* found ''"),
        (Settings(budget="-3"), "budget must be a number of frames, or bytes .* found '-3'"),
        (Settings(budget="2.5"), r"budget must be a number of frames, or bytes .* found '2\.5'"),
        (Settings(budget="1"), "budget must be at least 2 frames .* found 1"),
        (Settings(eviction="newest"), "unknown eviction 'newest'; valid: oldest, quality"),
        (Settings(eviction="quality"), r'eviction "quality" needs a network that assesses its masks \(qpm\)'),
        (Settings(precision="fp8"), "unknown precision 'fp8'; valid: fp64, fp32, bf16, fp16"),
        (Settings(scales=()), "scales must be positive factors, at least one"),
        (Settings(scales=(1.0, 0.0)), "scales must be positive factors, at least one"),
    ],
    ids=str,
)
def test_settings_that_do_not_suit_are_refused_before_a_video_starts(model, settings, told):
    with pytest.raises(UserError, match=told) as error:
        model.start(settings=settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("24", (24, None)),
        (" 7 ", (7, None)),
        ("unlimited", (None, None)),
        ("UNLIMITED", (None, None)),
        ("1MiB", (None, 2**20)),
        (" 0.5 gib ", (None, 2**29)),
        ("3kB", (None, 3000)),
    ],
)
def test_budgets_on_a_command_line_are_frames_or_bytes_or_none(budget, expected):
    assert parse_budget(budget) == expected


@pytest.mark.parametrize("budget", ["", "  ", "12 frames", "1.5", "-2", "unlimited MiB", "MiB", "1TiB", "²", "0B"])
def test_other_budgets_on_a_command_line_are_refused(budget):
    with pytest.raises(UserError, match="budget must be a number of frames, or bytes as '512MiB' or '2GB'"):
        parse_budget(budget)


def test_nothing_set_is_one_propagator_with_what_the_model_was_saved_with(nano, noise, tmp_path):
    networks.save(nano(), tmp_path / "stm.safetensors")
    saved = Model.load(save_model(tmp_path / "model", [tmp_path / "stm.safetensors"], memory_every=2, budget=3))
    for segmenter in (saved.start(), saved.start(settings=AS_SAVED), saved.start(settings=Settings())):
        assert type(segmenter) is Propagator
        (bank,) = followed(segmenter, noise(8, 1))
        assert (bank["frames"], bank["evicted"]) == ([0, 6, 7], [2, 4])
    expected = segment_clip(Propagator(nano(), memory_every=2, budget=3), noise(8, 1))
    assert (segment_clip(saved.start(), noise(8, 1)) == expected).all()


def test_one_network_alone_runs_as_the_papers_default(model, noise):
    (bank,) = followed(model.start(), noise(30, 1))
    assert bank["frames"] == [0, 5, 10, 15, 20, 25, 29]


def test_mirrored_and_scaled_views_are_averaged(model, noise):
    clip = noise(3, 2)
    augmented = model.start(settings=Settings(flip=True, scales=(0.75, 1.0)))
    assert isinstance(augmented, Ensemble)
    (merged,) = augmented.members
    assert [(view.scale, view.mirror) for view in merged.members] == [
        (0.75, False),
        (0.75, True),
        (1.0, False),
        (1.0, True),
    ]
    found = probabilities(augmented, clip)
    assert found.shape == (3, 40, 56)
    for settings in (Settings(), Settings(flip=True), Settings(scales=(0.75,))):
        assert (found - probabilities(model.start(settings=settings), clip)).abs().max() > 1e-4


def probabilities(segmenter: Segmenter, clip) -> torch.Tensor:
    """Those of the last frame."""
    for t, frame in enumerate(clip.frames):
        found = segmenter.step(frame, clip.masks[t] if t < 2 else None)
    return found


def test_the_frame_as_it_is_needs_no_views(model):
    assert type(model.start(settings=Settings(flip=False, scales=(1,)))) is Propagator
    assert isinstance(model.start(settings=Settings(scales=(0.5,))).members[0].members[0], View)


def test_views_keep_the_memory_that_is_set(model, noise):
    banks = followed(model.start(settings=Settings(memory_every=2, budget="3", flip=True)), noise(8, 1))
    assert [bank["frames"] for bank in banks] == [[0, 6, 7]] * 2


def test_every_member_of_a_model_runs_under_the_settings(nano, noise):
    model = Model([nano(seed=1), nano(seed=2)], memory_every=1, budget=None)
    segmenter = model.start(settings=Settings(memory_every=4, flip=True))
    assert [len(member.members) for member in segmenter.members] == [2, 2]
    assert [bank["frames"] for bank in followed(segmenter, noise(6, 1))] == [[0, 4, 5]] * 4


def test_refinement_is_around_everything_else(nano, noise):
    model = Model([nano(seed=1), nano(seed=2)])
    segmenter = model.start(settings=Settings(refine=True, flip=True, memory_every=2))
    assert isinstance(segmenter, Refined)
    assert isinstance(segmenter.member, Ensemble)
    assert [bank["frames"] for bank in followed(segmenter, noise(4, 1))] == [[0, 2, 3]] * 4
    assert not isinstance(model.start(settings=Settings(flip=True)), Refined)


def test_refined_masks_are_those_of_the_library(nano, noise):
    found = segment_clip(Model([nano()]).start(settings=Settings(refine=True)), noise(6, 2))
    assert (found == segment_clip(Refined(Propagator(nano(), budget=24)), noise(6, 2))).all()


def test_eviction_by_quality_is_for_networks_that_assess_their_masks(nano, noise):
    clip, network = noise(12, 1), nano("qpm", memory_threshold=-1.0)
    settings = Settings(memory_every=1, budget="4", eviction="quality")
    expected = followed(Propagator(network, memory_every=1, budget=4, eviction="quality"), clip)
    assert followed(Model([network]).start(settings=settings), clip) == expected
    with pytest.raises(UserError, match=r"assesses its masks \(qpm\); take \"oldest\""):
        Model([network, nano()]).start(settings=settings)


@pytest.mark.parametrize(("precision", "dtype"), [("fp64", torch.float64), ("fp32", torch.float32), (None, None)])
def test_networks_compute_in_the_precision_that_is_set(nano, noise, precision, dtype):
    clip = noise(3, 1)
    found = probabilities(Model([nano()]).start(settings=Settings(precision=precision)), clip)
    assert found.dtype == (dtype or torch.float32)
    expected = probabilities(Propagator(nano(), precision=precision, budget=24), clip)
    assert torch.equal(found, expected)


def test_half_precision_is_autocast_and_near(nano, noise):
    clip, model = noise(3, 1), Model([nano()])
    whole, half = (probabilities(model.start(settings=Settings(precision=p)), clip) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1


def test_a_model_stored_in_double_precision_stays_so(nano, noise):
    model = Model([nano().double()])
    assert probabilities(model.start(), noise(2, 1)).dtype == torch.float64

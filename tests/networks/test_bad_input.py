from __future__ import annotations

import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks import NETWORKS, MemoryNetwork, build
from vosforge.networks.parts import Parts, hints

EVERY = pytest.mark.parametrize("name", [name for name in NETWORKS if name != "cfbi+"])


def pixels(*shape: int, value: float = 0.5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


FRAMES = pixels(1, 3, 16, 16)
MASKS = pixels(1, 2, 16, 16)
NAN = float("nan")

BAD_FRAMES = [
    (pixels(1, 4, 16, 16), r"frames must be \(B, 3, H, W\) .*found \(1, 4, 16, 16\)"),
    (pixels(3, 16, 16), r"frames must be \(B, 3, H, W\) .*found \(3, 16, 16\)"),
    (pixels(1, 16, 16, 3), r"frames must be \(B, 3, H, W\) .*found \(1, 16, 16, 3\)"),
    (pixels(0, 3, 16, 16), r"frames must be \(B, 3, H, W\) .*found \(0, 3, 16, 16\)"),
    (pixels(1, 3, 0, 16), r"frames must be \(B, 3, H, W\) .*found \(1, 3, 0, 16\)"),
    (pixels(1, 3, 16, 16, dtype=torch.uint8), r"frames must be .* float in \[0, 1\], found .* torch.uint8"),
    (pixels(1, 3, 16, 16, dtype=torch.float64), "frames are torch.float64, the network is torch.float32"),
    (pixels(1, 3, 16, 16, dtype=torch.float16), "frames are torch.float16, the network is torch.float32"),
    (pixels(1, 3, 16, 16, value=NAN), r"frames must be in \[0, 1\], found nan"),
    (pixels(1, 3, 16, 16, value=float("inf")), r"frames must be in \[0, 1\], found inf"),
    (pixels(1, 3, 16, 16, value=255.0), r"frames must be in \[0, 1\], found 255 to 255"),
    (pixels(1, 3, 16, 16, value=-2.0), r"frames must be in \[0, 1\], found -2"),
]
BAD_MASKS = [
    (pixels(1, 2, 16, 8), r"masks must be \(B, K, H, W\) like the frames \(1, 3, 16, 16\), found \(1, 2, 16, 8\)"),
    (pixels(2, 2, 16, 16), r"masks must be \(B, K, H, W\) .*found \(2, 2, 16, 16\)"),
    (pixels(1, 16, 16), r"masks must be \(B, K, H, W\) .*found \(1, 16, 16\)"),
    (pixels(1, 2, 16, 16, value=1, dtype=torch.int64), "masks must be float .*one plane an object, found torch.int64"),
    (pixels(1, 2, 16, 16, value=1, dtype=torch.bool), "masks must be float .*found torch.bool"),
    (pixels(1, 2, 16, 16, dtype=torch.float64), "masks are torch.float64, the network is torch.float32"),
    (pixels(1, 0, 16, 16), r"no object \(K = 0\)"),
    (pixels(1, 256, 16, 16), "masks hold 256 objects; a frame has at most 255"),
    (pixels(1, 2, 16, 16, value=NAN), r"masks must be in \[0, 1\], found nan"),
    (pixels(1, 2, 16, 16, value=255.0), r"masks must be in \[0, 1\], found 255"),
]


def described(value: object) -> str | None:
    return f"{list(value.shape)}-{value.dtype}" if isinstance(value, torch.Tensor) else None


@pytest.mark.parametrize(("frames", "message"), BAD_FRAMES, ids=described)
@EVERY
def test_frames_that_cannot_be_encoded_are_refused(make, name, frames, message):
    network = make(name)
    with pytest.raises(UserError, match=message):
        network.encode_query(frames, None)
    with pytest.raises(UserError, match=message):
        network.encode_memory(frames, MASKS)


@pytest.mark.parametrize(("masks", "message"), BAD_MASKS, ids=described)
@EVERY
def test_masks_that_cannot_be_encoded_are_refused(make, name, masks, message):
    network = make(name)
    with pytest.raises(UserError, match=message):
        network.encode_memory(FRAMES, masks)
    with pytest.raises(UserError, match=message):
        network(FRAMES[:, None].repeat(1, 2, 1, 1, 1), masks)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            pixels(1, 1, 3, 16, 16),
            r"frames must be a tensor \(B, T, 3, H, W\) with T of at least 2, found \(1, 1, 3, ",
        ),
        (pixels(1, 0, 3, 16, 16), r"T of at least 2, found \(1, 0, 3, 16, 16\)"),
        (pixels(2, 3, 16, 16), r"T of at least 2, found \(2, 3, 16, 16\)"),
        (pixels(1, 2, 1, 16, 16), r"frames must be \(B, 3, H, W\) .*found \(1, 1, 16, 16\)"),
        (torch.stack([FRAMES, FRAMES * NAN], dim=1), r"frames must be in \[0, 1\], found nan"),
        (torch.stack([FRAMES, FRAMES * 300], dim=1), r"frames must be in \[0, 1\], found 150"),
    ],
    ids=described,
)
@EVERY
def test_clips_that_cannot_be_segmented_are_refused(make, name, frames, message):
    with pytest.raises(UserError, match=message):
        make(name)(frames, MASKS)


@pytest.mark.parametrize(
    ("valid", "found"),
    [
        (torch.ones(1, 3, dtype=torch.bool), r"\(1, 3\)"),
        (torch.ones(2, 2, dtype=torch.bool), r"\(2, 2\)"),
        (torch.ones(1, 2), "torch.float32"),
    ],
    ids=described,
)
def test_slots_of_another_form_are_refused(make, valid, found):
    with pytest.raises(UserError, match=rf"valid .*\(B, K\).*found .*{found}"):
        make("stm")(FRAMES[:, None].repeat(1, 2, 1, 1, 1), MASKS, valid)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("stm-interactive", "camn", "cfbi+")])
def test_scribbles_are_refused_by_networks_that_take_none(make, name):
    with pytest.raises(UserError, match=r"takes no scribbles; build one with memory_input='mask\+scribbles'"):
        make(name).encode_memory(FRAMES, MASKS, torch.zeros(1, 2, 2, 16, 16))


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (1, 1, 2, 16, 16), (1, 2, 1, 16, 16), (1, 2, 2, 16, 8)], ids=str)
def test_scribbles_of_another_form_are_refused(make, shape):
    network = make("stm-interactive")
    message = r"scribbles must be \(B, K, 2, H, W\) = \(1, 2, 2, 16, 16\), found \(1, "
    with pytest.raises(UserError, match=message):
        network.encode_memory(FRAMES, MASKS, torch.zeros(shape))
    with pytest.raises(UserError, match=message):
        network(FRAMES[:, None].repeat(1, 2, 1, 1, 1), MASKS, scribbles=torch.zeros(shape))


@pytest.mark.parametrize("value", [NAN, 255.0])
def test_scribbles_of_other_values_are_refused(make, value):
    with pytest.raises(UserError, match=r"scribbles must be in \[0, 1\], found"):
        make("stm-interactive").encode_memory(FRAMES, MASKS, pixels(1, 2, 2, 16, 16, value=value))


def test_siamese_query_without_targets_is_refused(make):
    for network in (make("emn"), make("stcn", siamese=True)):
        with pytest.raises(UserError, match=r"needs its targets: targets=network.encode_target\(frames, masks\)"):
            network.encode_query(FRAMES)


@pytest.mark.parametrize("shape", [(2, 2, 48, 1, 1), (1, 2, 47, 1, 1), (2, 48, 1, 1)], ids=str)
def test_targets_of_another_form_are_refused(make, shape):
    with pytest.raises(UserError, match=r"targets must be \(B, K, C, .*found"):
        make("emn").encode_query(FRAMES, torch.zeros(shape))


def segmented(network: MemoryNetwork, targets: int, masks: int, prior: int | None, memory: int) -> torch.Tensor:
    """Logits of a frame, with so many objects in each of the tensors that say something of them."""
    planes = {n: pixels(1, n, 16, 16) for n in range(1, 5)}
    with torch.no_grad():
        target = network.encode_target(FRAMES, planes[targets])
        query = network.encode_query(FRAMES, target, planes[masks], None if prior is None else planes[prior])
        remembered = network.encode_memory(FRAMES, planes[memory])
        return network.segment(query, *(x[:, :, :, None] for x in remembered))


@pytest.mark.parametrize(("asked", "held"), [(2, 3), (3, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize(
    ("name", "parts", "what"),
    [
        ("qpm", {"prior": "object"}, "the query"),
        ("emn", {}, "the query"),
        ("stcn", {"siamese": True}, "the query"),
        ("skn", {}, "the query's previous masks"),
        ("stcn", {"reader": "spatial"}, "the query's previous masks"),
        ("emn", {"prior": "object"}, "the query"),
    ],
    ids=str,
)
def test_queries_of_other_objects_than_the_memory_are_refused(make, name, parts, what, asked, held):
    network = make(name, **parts)
    message = f"^{what} must be of K = {held} objects, like the memory's values, found {asked}$"
    with pytest.raises(UserError, match=message):
        segmented(network, targets=asked, masks=asked, prior=None, memory=held)
    assert segmented(network, asked, asked, None, asked).shape == (1, asked + 1, 16, 16)


@pytest.mark.parametrize("name", ["stm", "kmn", "mivos", "qpm", "stcn"])
def test_query_of_no_object_in_particular_serves_a_memory_of_any_number(make, name):
    assert segmented(make(name), 1, 2, None, 3).shape == (1, 4, 16, 16)


@pytest.mark.parametrize(("targets", "masks"), [(2, 3), (1, 3), (3, 1)])
def test_targets_of_other_objects_than_the_masks_are_refused(make, targets, masks):
    message = f"targets must be of K = {masks} objects, like the masks that enhance the query, found {targets}"
    with pytest.raises(UserError, match=message):
        segmented(make("emn", prior="object"), targets, masks, None, masks)


@pytest.mark.parametrize("prior", [1, 3])
def test_prior_of_other_objects_than_the_previous_masks_is_refused(make, prior):
    for network in (make("qpm"), make("qpm", prior="object"), make("skn", prior="object")):
        with pytest.raises(UserError, match=rf"prior masks must be of K = 2 objects, .*found {prior}$"):
            segmented(network, 2, 2, prior, 2)


def test_memory_keys_of_other_objects_than_its_values_are_refused(make):
    network = make("stm")
    with torch.no_grad():
        query = network.encode_query(FRAMES)
        key, value = (x[:, :, :, None] for x in network.encode_memory(FRAMES, pixels(1, 3, 16, 16)))
        for keys, values in ((2, 3), (3, 1), (3, 2)):
            with pytest.raises(UserError, match=f"memory keys must be of K = {values} objects, .*found {keys}$"):
                network.read(query, key[:, :keys], value[:, :values])


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("part", [part for part, hint in hints(Parts).items() if hint is float])
def test_parts_that_are_no_finite_number_are_refused(part, value):
    others = {"quality": "own", "prior": "union", "reader": "kernel", "aspp": "read"}
    with pytest.raises(UserError, match=f"^{part} must be .*, found {value}$"):
        build("qpm", "nano", **others, **{part: value})


def test_memory_of_another_size_is_refused(make):
    network = make("stm")
    with torch.no_grad():
        query = network.encode_query(pixels(1, 3, 24, 24))
        key, value = network.encode_memory(FRAMES, MASKS)
        with pytest.raises(UserError, match="a reader expects"):
            network.read(query, key[:, :, :, None], value[:, :, :, None])


def test_values_that_resampling_overshoots_are_taken(make):
    network = make("stm")
    with torch.no_grad():
        key, _ = network.encode_memory(FRAMES * 2.1, MASKS * 2.1)
        assert network.encode_query(FRAMES - 0.6).key.isfinite().all()
    assert key.isfinite().all()


def test_most_objects_that_a_frame_can_hold_are_encoded(make):
    with torch.no_grad():
        key, value = make("stm").encode_memory(pixels(1, 3, 8, 8), pixels(1, 255, 8, 8, value=0.0))
    assert (key.shape, value.shape) == ((1, 255, 32, 1, 1), (1, 255, 64, 1, 1))

from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch

from vosforge.errors import UserError
from vosforge.networks import build, load, save
from vosforge.networks.encoders import IMAGENET_MEAN, IMAGENET_STD, Encoder


def write(path, state: dict[str, torch.Tensor], form: str):
    """A file of weights in one of the forms that are met in the wild."""
    prefixed = {f"module.{name}": weight for name, weight in state.items()}
    if form == "safetensors":
        safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    contents = {
        "pth": state,
        "pth with a prefix": prefixed,
        "pth under state_dict": {"epoch": 3, "state_dict": prefixed},
        "pth under model": {"model": {"state_dict": state}},
    }
    torch.save(contents[form], path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def randomised(backbone: str) -> dict[str, torch.Tensor]:
    """A whole classifier's weights, statistics of its norms included, none of them as at the start."""
    torch.manual_seed(7)
    state = timm.create_model(backbone).state_dict()
    return {k: torch.rand_like(v) + 0.1 if v.is_floating_point() else torch.full_like(v, 5) for k, v in state.items()}


FORMS = ["safetensors", "pth", "pth with a prefix", "pth under state_dict", "pth under model"]


@pytest.mark.parametrize("form", FORMS)
def test_pretrained_file_is_held_by_both_encoders(tmp_path, form):
    state = randomised("resnet18")
    path = write(tmp_path / "weights", state, form)
    network = build("stm", "nano", backbone="resnet18", pretrained=str(path))
    query, memory = network.query_encoder.body.state_dict(), network.memory_encoder.body.state_dict()
    assert len(query) > 50
    assert all((weight == state[name]).all() for name, weight in query.items())
    assert all((weight == state[name]).all() for name, weight in memory.items() if name != "conv1.weight")
    assert (memory["conv1.weight"][:, :3] == state["conv1.weight"]).all()
    assert memory["conv1.weight"].shape[1] == 5
    assert memory["conv1.weight"][:, 3:].abs().max() > 0


def test_pretrained_stem_is_held_beside_its_planes(tmp_path):
    state = randomised("resnet18d")
    path = write(tmp_path / "weights", state, "pth")
    network = build("stm", "nano", backbone="resnet18d", planes_at="stem", pretrained=str(path))
    memory = network.memory_encoder.body.state_dict()
    assert all((memory[f"conv1.rgb.{i}.weight"] == state[f"conv1.{i}.weight"]).all() for i in (0, 3, 6))
    assert memory["conv1.planes.weight"].shape == (64, 2, 7, 7)


@pytest.mark.parametrize("backbone", ["test_resnet", "resnest14d", "test_efficientnet", "test_convnext"])
def test_pretrained_file_fits_any_backbone(tmp_path, backbone):
    path = write(tmp_path / "weights", randomised(backbone), "pth")
    network = build("stm", "nano", backbone=backbone, pretrained=str(path))
    assert all(weight.min() >= 0.1 for weight in network.query_encoder.body.state_dict().values())


def test_pretrained_file_may_be_a_whole_network(tmp_path):
    donor = build("emn", "nano")
    save(donor, tmp_path / "emn.safetensors")
    network = build("stcn", "nano", pretrained=str(tmp_path / "emn.safetensors"))
    own = network.query_encoder.body.state_dict()
    assert all((weight == own[name]).all() for name, weight in donor.query_encoder.body.state_dict().items())


def test_pretrained_file_leaves_another_memory_backbone_alone(tmp_path):
    path = write(tmp_path / "weights", randomised("resnet18"), "pth")
    network = build("stm", "nano", backbone="resnet18", memory_backbone="test_efficientnet", pretrained=str(path))
    assert network.query_encoder.body.conv1.weight.min() >= 0.1
    assert network.memory_encoder.body.model.conv_stem.weight.min() < 0


def test_pretrained_files_that_do_not_fit_are_refused_by_name(tmp_path):
    text, objects, numbers = tmp_path / "text.pth", tmp_path / "objects.pth", tmp_path / "numbers.pth"
    text.write_text("no weights")
    torch.save({"state_dict": Encoder}, objects)
    torch.save({"epoch": 3}, numbers)
    other = write(tmp_path / "other", timm.create_model("test_resnet").state_dict(), "pth")
    wider = timm.create_model("resnet18", in_chans=4).state_dict()
    for path, message in [
        (tmp_path / "gone.pth", "no such file of weights"),
        (text, "expected weights"),
        (objects, "expected weights"),
        (numbers, "expected names and tensors"),
        (other, r"\d+ of 60 are missing or misshapen: conv1.weight, "),
        (write(tmp_path / "wider", wider, "pth"), r"1 of 60 are missing or misshapen: conv1.weight$"),
    ]:
        with pytest.raises(UserError, match=rf"{path.name}: .*{message}"):
            build("stm", "nano", backbone="resnet18", pretrained=str(path))


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224"]
)
def test_feature_levels_have_the_strides_asked_for(backbone):
    encoder = Encoder(backbone, (4, 8, 16)).eval()
    levels = encoder(torch.rand(2, 3, 32, 48))
    sizes = [(2, channels, 32 // s, 48 // s) for channels, s in zip(encoder.channels, (4, 8, 16), strict=True)]
    assert [tuple(level.shape) for level in levels] == sizes


def test_frames_are_normalised_and_planes_are_not():
    encoder = Encoder("test_resnet", (4,), planes=2).eval()
    seen = []
    encoder.body.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    frames, planes = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    encoder(frames, planes)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert (seen[0][:, :3] - (frames - mean) / std).abs().max() < 1e-6
    assert (seen[0][:, 3:] == planes).all()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18d", "resnest14d"])
def test_planes_at_the_stem_add_to_its_output(backbone):
    encoder = Encoder(backbone, (4, 8), planes=2, planes_at="stem").eval()
    frames, planes = torch.rand(1, 3, 16, 16), torch.rand(1, 2, 16, 16)
    stem = encoder.body.conv1
    x = torch.cat([frames, planes], dim=1)
    assert (stem(x) - stem.rgb(frames) - stem.planes(planes)).abs().max() < 1e-6
    assert stem.planes.kernel_size == (7, 7)
    with torch.no_grad():
        stem.planes.weight.zero_()
        assert all((a == b).all() for a, b in zip(encoder(frames, planes), encoder(frames, 1 - planes), strict=True))


def test_saved_network_needs_the_files_no_more_that_its_backbones_started_from(tmp_path):
    query = write(tmp_path / "query", randomised("resnet18"), "pth")
    memory = write(tmp_path / "memory", randomised("test_resnet"), "pth")
    parts = {"backbone": "resnet18", "memory_backbone": "test_resnet", "strides": (4, 8)}
    network = build("stcn", "nano", **parts, pretrained=query, memory_pretrained=memory)
    assert network.memory_encoder.body.layer2[0].conv1.weight.min() >= 0.1
    save(network, tmp_path / "stcn.safetensors")
    query.unlink()
    memory.unlink()
    assert load(tmp_path / "stcn.safetensors").description["parts"]["memory_pretrained"] is False

"""The light stacking network that merges an ensemble's members (CAMN, 2.3)."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError
from vosforge.storage import write_aside

# Probabilities below it count as it: their logarithm stays finite.
_FLOOR = 1e-4


class StackingNetwork(nn.Module):
    """Looks at the frame and at what each member predicts, and corrects the members' average.

    Every class, the background too, passes the same three convolutions beside the strongest of the other classes, so
    that any number of objects in any order is merged. It starts as the average of the members.

    The paper gives a figure alone: depth, width and the frame as an input are choices of ours.

    Args:
        members: M, in a fixed order.
        channels: of the convolutions.

    Raises:
        UserError: for less than one member.
    """

    def __init__(self, members: int, channels: int = 16):
        super().__init__()
        if members < 1 or channels < 1:
            raise UserError(f"stacking needs at least one member and one channel, found {members} and {channels}")
        self.members, self.channels = members, channels
        self.convs = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1) for width in (3 + 2 * members, channels, channels)
        )
        self.correction = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, frames: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K + 1, H, W)` of background and objects.

        Args:
            frames: `(B, 3, H, W)` in [0, 1].
            probabilities: `(B, M, K + 1, H, W)` in [0, 1], background first, K >= 1.

        Raises:
            UserError: for tensors of other shapes.
        """
        wanted = (len(frames), self.members, *frames.shape[2:])
        found = tuple(probabilities.shape)
        if len(found) != 5 or (*found[:2], *found[3:]) != wanted or found[2] < 2:
            expected = f"(B, M, K + 1, H, W) with M = {self.members} members and K of at least 1 beside frames"
            raise UserError(f"probabilities must be {expected} {tuple(frames.shape)}, found {found}")
        classes = found[2]
        own = probabilities.clamp(min=_FLOOR).log()
        strongest, second = own.topk(2, dim=2).values.unbind(2)
        others = torch.where(own == strongest[:, :, None], second[:, :, None], strongest[:, :, None])
        seen = torch.cat([own, others], dim=1).transpose(1, 2)
        seen = torch.cat([frames[:, None].expand(-1, classes, -1, -1, -1), seen], dim=2)
        x = seen.flatten(0, 1)
        for conv in self.convs:
            x = F.relu(conv(x))
        average = probabilities.mean(dim=1).clamp(min=_FLOOR).log()
        return average + self.correction(x).unflatten(0, (-1, classes))[:, :, 0]


def save_stacking(network: StackingNetwork, path: str | Path) -> None:
    """Write a stacking network into one safetensors file."""
    metadata = {"members": str(network.members), "channels": str(network.channels)}
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    with write_aside(path) as aside:
        safetensors.torch.save_file(weights, aside, metadata=metadata)


def load_stacking(path: str | Path) -> StackingNetwork:
    """The stacking network that `save_stacking` wrote, in evaluation mode.

    Raises:
        UserError: when the file is missing or is something else.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of a stacking network")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            network = StackingNetwork(int(metadata["members"]), int(metadata["channels"]))
            network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{path}: expected a stacking network, found something else ({told})") from error
    return network.eval()

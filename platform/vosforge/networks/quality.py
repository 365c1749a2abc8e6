"""Quality assessment and prior enhancement (QPM): how good a mask is, and which mask helps the next query."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

# Below this a first frame's score says nothing, and dividing by it less.
SCORE_FLOOR = 0.05


class QualityHead(nn.Module):
    """Predicts a mask's IoU from features of the frame with it (QPM, 2.2): four 3x3 convolutions, two linear layers.

    Args:
        channels_in: of the features.
        channels: of the convolutions; the hidden linear layer has four times as many.
        cells: side of the map to which features are resized first, since the linear layers have a fixed size.
        activation: of the score: "linear", clamped to [0, 1] outside training, as Mask Scoring R-CNN regresses a
            mask's IoU; "relu", the first form of the authors' later code; or "sigmoid", their advice where that dies.
            Under the squared error the latter two lose their gradient once early, poor masks have driven the score
            to 0, and with the sigmoid the hidden layer saturates too.
        hidden: activation of the hidden layer: "relu", or the authors' "sigmoid", which learns later.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        cells: int,
        activation: Literal["linear", "sigmoid", "relu"] = "linear",
        hidden: Literal["relu", "sigmoid"] = "relu",
    ):
        super().__init__()
        self.cells = cells
        self.hidden_activation = {"relu": F.relu, "sigmoid": torch.sigmoid}[hidden]
        self.activation = activation
        strides = (1, 1, 1, 2)
        widths = (channels_in, channels, channels, channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, channels, 3, stride=stride, padding=1)
            for width, stride in zip(widths, strides, strict=True)
        )
        side = (cells + 1) // 2
        self.hidden = nn.Linear(channels * side * side, 4 * channels)
        self.score = nn.Linear(4 * channels, 1)
        if activation == "linear":
            # As a fresh sigmoid says: else a first frame's score would be below the floor.
            nn.init.constant_(self.score.bias, 0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` -> scores `(B,)`, in [0, 1] but for "relu", and for "linear" in training."""
        x = F.interpolate(features, size=(self.cells, self.cells), mode="bilinear", align_corners=False)
        for conv in self.convs:
            x = F.relu(conv(x))
        x = self.score(self.hidden_activation(self.hidden(x.flatten(1))))[:, 0]
        if self.activation == "linear":
            return x if self.training else x.clamp(0, 1)
        return x.sigmoid() if self.activation == "sigmoid" else F.relu(x)


class PriorEnhancement(nn.Module):
    """Weighs the query's features by where a mask was: `h(f, mask) * f`, h conv and sigmoid (QPM, equation 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, 1, 3, padding=1)

    def forward(self, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """features `(B, C, h, w)`, masks `(B, 1, h, w)` in [0, 1] -> `(B, C, h, w)`."""
        return features * self.gate(features, masks)

    def gate(self, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The prior-enhancement map, `(B, 1, h, w)` in (0, 1)."""
        return self.conv(torch.cat([features, masks], dim=1)).sigmoid()


def relative(scores: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Scores divided by those of the frame where the masks were given (QPM, equation 2).

    Where the first score is below `SCORE_FLOOR` the answer is 1: such a head tells nothing, and all are as good.
    """
    return torch.where(first < SCORE_FLOOR, 1.0, scores / first.clamp(min=SCORE_FLOOR))

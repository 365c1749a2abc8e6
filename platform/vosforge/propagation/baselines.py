"""Propagation without a network: what every network has to beat.

Both stream through the same `step(frame, mask=None)` as the propagators of networks, so they stand wherever one of
those does: in evaluation, in reports, in tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from vosforge.propagation.segmenter import Segmenter

_SMALLEST = 16
"""Shortest side in pixels that is safe for OpenCV's DIS flow: on smaller frames it kills the process."""


class CopyFirstMask(Segmenter):
    """Every frame gets the mask that was given last: the score of doing nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._previous: torch.Tensor | None = None

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """`(K + 1, H, W)` float32, one-hot: what was known before. Before the first mask all is background."""
        return torch.ones(1, *frame.shape[-2:]) if self._previous is None else self._previous

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Keep the probabilities for the next frame."""
        self._previous = probabilities

    def forget(self, objects: Sequence[int]) -> None:
        """Drop their masks."""
        kept = [k for k, i in enumerate(self.objects, start=1) if i not in objects]
        planes = self._previous[kept]
        self._previous = torch.cat([1 - planes.sum(dim=0, keepdim=True), planes])

    def fresh(self) -> CopyFirstMask:
        """Another one, at the start of a video."""
        return type(self)()


class OpticalFlow(CopyFirstMask):
    """Every mask is the previous one, moved by dense optical flow.

    The flow runs backward, from this frame to the previous one, so every pixel looks its label up where it came from
    (nearest neighbour; from outside the frame comes background). The flow is DIS (Kroeger et al., "Fast Optical Flow
    using Dense Inverse Search", ECCV 2016) in OpenCV's implementation, medium preset, on grey frames. Mistakes are
    never mended: what the flow loses stays lost, and ground that an object uncovers keeps the object's label (it looks
    itself up where the object was), so moving objects leave a trail.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._grey: np.ndarray | None = None

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """`(K + 1, H, W)` float32, one-hot: the previous masks where the flow says they went."""
        probabilities = super().predict(frame)
        if not self.objects:
            return probabilities
        labels = probabilities.max(dim=0).indices.numpy().astype(np.uint8)
        flow = self._backward(_grey(frame), self._grey)
        y, x = np.indices(labels.shape, dtype=np.float32)
        moved = cv2.remap(labels, x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST, borderValue=0)
        return (torch.from_numpy(moved) == torch.arange(len(self.objects) + 1)[:, None, None]).float()

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Keep the probabilities and the frame for the next one."""
        super().memorise(frame, probabilities, given)
        self._grey = _grey(frame)

    def _backward(self, current: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Where each pixel of `current` `(H, W)` was in `previous`: `(H, W, 2)` float32 offsets in pixels, x first."""
        height, width = current.shape
        room = (0, max(0, _SMALLEST - height), 0, max(0, _SMALLEST - width))
        current, previous = (cv2.copyMakeBorder(grey, *room, cv2.BORDER_REPLICATE) for grey in (current, previous))
        return self._flow.calc(current, previous, None)[:height, :width]


def _grey(frame: torch.Tensor) -> np.ndarray:
    """`(1, 3, H, W)` RGB in [0, 1] -> `(H, W)` uint8."""
    rgb = (frame[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)

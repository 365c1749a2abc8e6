"""Flow, depth and amodal masks as PNG bytes, and back."""

from __future__ import annotations

import cv2
import numpy as np

from vosforge.errors import UserError

DEPTH_STEPS = 2000
"""Steps of encoded depth in one scene unit, so that 16 bits reach 32 units."""
_FLOW_STEPS, _FLOW_ZERO = 64, 1 << 15
# One filter for all rows takes half the time of a choice for each row, for a few per cent of size.
_COMPRESSION = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


def encode_flow(flow: np.ndarray, valid: np.ndarray) -> bytes:
    """Flow as KITTI stores it (Menze and Geiger, "Object scene flow for autonomous vehicles", CVPR 2015).

    Args:
        flow: `(H, W, 2)` pixels to the right and down.
        valid: `(H, W)` bool.

    Returns:
        16-bit RGB PNG: 64 u + 2^15, 64 v + 2^15, and 1 where the flow is valid and within 512 pixels, else all 0.
    """
    steps = flow * np.float32(_FLOW_STEPS) + np.float32(_FLOW_ZERO + 0.5)
    fits = valid & (steps[..., 0] >= 0) & (steps[..., 0] < 1 << 16) & (steps[..., 1] >= 0) & (steps[..., 1] < 1 << 16)
    image = np.zeros((*fits.shape, 3), np.uint16)
    np.copyto(image[..., 2], steps[..., 0], casting="unsafe", where=fits)
    np.copyto(image[..., 1], steps[..., 1], casting="unsafe", where=fits)
    image[..., 0] = fits
    return _png(image)


def decode_flow(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """`(H, W, 2)` float32 flow, 0 where it is not valid, and `(H, W)` bool.

    Raises:
        UserError: when the bytes are no 16-bit RGB PNG.
    """
    image = _decoded(data, "flow", np.uint16, 3)
    valid = image[..., 0] > 0
    flow = (image[..., :0:-1].astype(np.float32) - _FLOW_ZERO) / _FLOW_STEPS
    return flow * valid[..., None], valid


def encode_depth(depth: np.ndarray) -> bytes:
    """`(H, W)` depth in scene units as 16-bit grey PNG of 2,000 steps a unit; what is beyond 32.7 units becomes 32.7.

    Depth beyond the near plane, 0.05, is never encoded as 0.
    """
    return _png(np.clip(depth * np.float32(DEPTH_STEPS) + np.float32(0.5), 0, (1 << 16) - 1).astype(np.uint16))


def decode_depth(data: bytes) -> np.ndarray:
    """`(H, W)` float32 depth in scene units.

    Raises:
        UserError: when the bytes are no 16-bit grey PNG.
    """
    return _decoded(data, "depth", np.uint16, 1).astype(np.float32) / DEPTH_STEPS


def encode_amodal(masks: np.ndarray) -> bytes:
    """`(N, H, W)` bool masks as one 8-bit grey PNG of `(ceil(N / 8) * H, W)`: planes of 8 objects below one another.

    Bit b of plane p, counted from 0, belongs to object 8 p + b + 1.
    """
    planes = np.packbits(masks, axis=0, bitorder="little")
    return _png(planes.reshape(-1, masks.shape[2]))


def decode_amodal(data: bytes, objects: int) -> np.ndarray:
    """`(objects, H, W)` bool masks of objects 1 to `objects`.

    Raises:
        UserError: when the bytes are no 8-bit grey PNG, or its rows do not make planes for as many objects.
    """
    image = _decoded(data, "amodal", np.uint8, 1)
    planes = max(-(-objects // 8), 1)
    if len(image) % planes:
        raise UserError(f"amodal: expected planes for {objects} objects, found {len(image)} rows")
    image = image.reshape(planes, -1, image.shape[1])
    return np.unpackbits(image, axis=0, count=objects, bitorder="little").astype(bool)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, _COMPRESSION)[1].tobytes()


def _decoded(data: bytes, name: str, kind: type, channels: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None or image.dtype != kind or image.ndim != (3 if channels > 1 else 2):
        found = "bytes that do not decode" if image is None else f"{image.shape} {image.dtype}"
        raise UserError(f"{name}: expected a PNG of {channels} {np.dtype(kind).name} channels, found {found}")
    return image

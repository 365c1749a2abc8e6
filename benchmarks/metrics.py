"""J and F: milliseconds of vosforge against the official algorithm done plainly, on the same masks and one core.

The plain side follows the official DAVIS evaluation step for step: boundary maps from whole-frame XORs, dilation by
a disc with OpenCV, sums over whole frames, frame by frame and object by object.

    python benchmarks/metrics.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
from skimage.morphology import disk

from vosforge.evaluation import boundary_f, jaccard

FRAMES, HEIGHT, WIDTH, OBJECTS, ROUNDS = 20, 480, 854, 3, 3


def plain_jaccard(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    common = (truth & prediction).sum(axis=(1, 2))
    union = (truth | prediction).sum(axis=(1, 2))
    return np.where(union == 0, 1.0, common / np.maximum(union, 1))


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    east, south, corner = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    boundary = (mask ^ east) | (mask ^ south) | (mask ^ corner)
    boundary[-1] = mask[-1] ^ east[-1]
    boundary[:, -1] = mask[:, -1] ^ south[:, -1]
    boundary[-1, -1] = False
    return boundary


def plain_f(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    values = np.empty(len(truth))
    for t, (wanted, given) in enumerate(zip(truth, prediction, strict=True)):
        element = disk(int(np.ceil(0.008 * np.linalg.norm(wanted.shape))))
        wanted, given = plain_boundary(wanted), plain_boundary(given)
        given_found = given & (cv2.dilate(wanted.astype(np.uint8), element) > 0)
        wanted_found = wanted & (cv2.dilate(given.astype(np.uint8), element) > 0)
        n_wanted, n_given = wanted.sum(), given.sum()
        if n_wanted and n_given:
            precision, recall = given_found.sum() / n_given, wanted_found.sum() / n_wanted
        else:
            precision, recall = float(n_given == 0), float(n_wanted == 0)
        total = precision + recall
        values[t] = 2 * precision * recall / total if total else 0.0
    return values


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Three drifting ellipses of the sizes common in DAVIS (about 2, 6 and 10 % of the frame), and a wavering copy."""
    truth, prediction = np.zeros((2, FRAMES, HEIGHT, WIDTH), dtype=np.uint8)
    shapes = [((180, 150), (60, 45)), ((420, 300), (110, 75)), ((650, 200), (100, 130))]
    for t in range(FRAMES):
        for k, ((x, y), axes) in enumerate(shapes, start=1):
            place = (x + 4 * t, y + (-1) ** k * 2 * t)
            cv2.ellipse(truth[t], place, axes, 10.0 * k + t, 0, 360, k, cv2.FILLED)
            off = (place[0] + (5 * t + k) % 17 - 8, place[1] + (3 * t + k) % 13 - 6)
            cv2.ellipse(prediction[t], off, axes, 10.0 * k - t, 0, 360, k, cv2.FILLED)
    return truth, prediction


def best_of(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Milliseconds of the fastest round, and the answer."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        answer = call()
        times.append(1000 * (time.perf_counter() - begin))
    return min(times), answer


def main() -> None:
    cv2.setNumThreads(1)
    truth, prediction = masks()
    pairs = [(truth == k, prediction == k) for k in range(1, OBJECTS + 1)]
    total = {"plain": 0.0, "vosforge": 0.0}
    print(f"{OBJECTS} objects, {FRAMES} frames of {HEIGHT}x{WIDTH}, one core, best of {ROUNDS}")
    for name, plain, ours in (("J", plain_jaccard, jaccard), ("F", plain_f, boundary_f)):
        slow, expected = best_of(lambda metric=plain: np.stack([metric(*pair) for pair in pairs]))
        fast, found = best_of(lambda metric=ours: np.stack([metric(*pair) for pair in pairs]))
        if not np.allclose(found, expected, rtol=0, atol=1e-9):
            raise SystemExit(f"{name} differs by {np.abs(found - expected).max():.3g}, expected at most 1e-9")
        print(f"{name}: plain {slow:.1f} ms, vosforge {fast:.1f} ms, {slow / fast:.1f}x, mean {found.mean():.3f}")
        total["plain"] += slow
        total["vosforge"] += fast
    ratio = total["plain"] / total["vosforge"]
    print(f"both: plain {total['plain']:.1f} ms, vosforge {total['vosforge']:.1f} ms, {ratio:.1f}x, equal to 1e-9")


if __name__ == "__main__":
    main()

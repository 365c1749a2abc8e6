"""Files that cannot be read, as errors that name them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
from PIL import Image

from vosforge.errors import UserError


@contextlib.contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Turn what keeps files from being read in this block into a `UserError`.

    Args:
        name: what is read; a file that the system cannot open is called by its own name instead.

    Raises:
        UserError: for a missing or forbidden file, and for a picture with more pixels than its library opens.
    """
    try:
        yield
    except (Image.DecompressionBombError, cv2.error) as error:
        raise UserError(f"{name}: cannot be read ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise UserError(f"{error.filename or name}: cannot be read ({error.strerror or error})") from error

"""Files of weights, from which nothing but tensors is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from vosforge.errors import UserError


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file by name; nothing but tensors is ever unpickled.

    A file that holds `{"state_dict": ...}` (or "network", "model", "model_state") gives what lies under it.

    Raises:
        UserError: when the file is missing or holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of weights")
    try:
        if str(path).endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: expected weights, .safetensors or a .pth that holds tensors alone") from error
    return unwrapped(content, str(path))


def unwrapped(content: Any, label: str) -> dict[str, Any]:
    """Names and tensors (or arrays) that may lie under "state_dict", "network", "model" or "model_state".

    Raises:
        UserError: naming `label`, for anything else.
    """
    while isinstance(content, Mapping):
        if content and all(isinstance(v, (torch.Tensor, np.ndarray)) for v in content.values()):
            if all(isinstance(name, str) for name in content):
                return dict(content)
            break
        inner = [content[k] for k in ("state_dict", "network", "model", "model_state") if k in content]
        content = inner[0] if inner else None
    raise UserError(f"{label}: expected names and tensors, or these under 'state_dict', found something else")

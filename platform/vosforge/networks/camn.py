"""CAMN: the collaborative attention memory network.

Z. Huang, J. Zha, F. Xie, Y. Zheng, Y. Zhong, J. Tang: "Collaborative Attention Memory Network for Video Object
Segmentation", YouTube-VOS Challenge 2021; section and figure numbers are that paper's.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks import cfbi

PAPER = replace(
    cfbi.PAPER,
    memory_encoder="product",  # 2.1, figure 2a
    memory_keys="shared",  # figure 2a has one "conv K"; the text, one for each map
    key_channels=128,  # not given, STM's
    value_channels=512,  # not given, STM's; half of it the background's
    memory_policy="previous",  # figure 1: all past frames are read, the first and the previous one matched
    object_context=True,  # 2.2, at stride 16
    pyramid="pan",  # 2.2, bottom-up path augmentation which follows FPN
)
_OWN = {name: getattr(PAPER, name) for name in ("memory_encoder", "memory_policy", "object_context", "pyramid")}
_SMALL = replace(cfbi.SIZES["small"], **_OWN, key_channels=64, value_channels=128, key_gain=4.0)
_NANO = replace(cfbi.SIZES["nano"], **_OWN, key_channels=32, value_channels=32, key_gain=4.0)
SIZES = {"nano": _NANO, "small": _SMALL, "paper": PAPER}

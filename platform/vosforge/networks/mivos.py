"""MiVOS's propagation network: STM with top-k reading and a wider decoder. QPM builds on it.

H. K. Cheng, Y.-W. Tai, C.-K. Tang: "Modular Interactive Video Object Segmentation", CVPR 2021; section numbers are
that paper's. Numbers follow the published code.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks import stm
from vosforge.networks.parts import sizes

PAPER = replace(
    stm.PAPER,
    reader="topk",  # 3.2, top-k filtering
    top_k=50,
    decoder="mivos",
    padding="mean",
    memorise_margin=True,
)
SIZES = sizes(PAPER)

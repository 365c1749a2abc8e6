"""QPM: the quality-aware and selective prior enhancement memory network.

Y. Liu, R. Yu, X. Zhao, Y. Yang: "Quality-aware and Selective Prior Enhancement Memory Network for Video Object
Segmentation", YouTube-VOS Challenge 2021; section and equation numbers are that paper's.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks import mivos
from vosforge.networks.parts import sizes

PAPER = replace(
    mivos.PAPER,  # 2, "on the basis of MiVOS"; 3.1, ResNet-50 for all encoders
    reader="dense",  # 2.1, equation 1
    top_k=None,
    quality="own",  # 2.2, "a score encoder that is the same as the memory encoder", equation 2
    quality_activation="sigmoid",  # not given; the ReLU of the authors' later code dies
    quality_hidden="relu",  # not given; a sigmoid in that code
    memory_threshold=0.7,  # 2.2, equation 3
    prior="union",  # 2.3, equation 4 has one mask; the authors' later code takes the maximum over the objects
    prior_threshold=0.65,  # 2.3
)
SIZES = sizes(PAPER)

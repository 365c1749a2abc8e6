"""KMN: the kernelized memory network, on which SKN builds.

H. Seong, J. Hyun, E. Kim: "Kernelized Memory Network for Video Object Segmentation", ECCV 2020. Its code was never
published; the reading is that of its first author's later network.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks import stm
from vosforge.networks.parts import sizes

PAPER = replace(
    stm.PAPER,
    reader="kernel",  # section 3: query-to-memory and memory-to-query matching
    sigma=7.0,
    argmax_on="affinity",
    renormalise=True,
)
SIZES = sizes(PAPER)

"""SKN: the memory reader with spatial-constraint kernel.

C. Qiao, H. Wang, C. Chen, Y. Gao, Q. Wang, X. Tang: "A memory reader with spatial-constrain kernel for Video Object
Segmentation", YouTube-VOS Challenge 2021; section and equation numbers are that paper's.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks import stm
from vosforge.networks.parts import sizes

# The public re-training of STM with ResNeSt-101 and ASPP that the paper starts from (its table of ablations).
BASELINE = replace(
    stm.PAPER,
    backbone="resnest101e",
    planes_at="stem",
    aspp="read",
    aspp_dilations=(1, 2, 4, 8),
    aspp_norm="none",
    aspp_pooling=False,
    aspp_dropout=0.5,
    rectified_skip=True,
)
PAPER = replace(
    BASELINE,
    reader="spatial",  # 2.2, equations 4 to 11
    sigma=7.0,  # equation 9; not given, KMN's
    argmax_on="weights",  # equations 7 and 8
    renormalise=False,  # equations 10 and 11
)
SIZES = sizes(PAPER)

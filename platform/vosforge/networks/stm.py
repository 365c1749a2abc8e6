"""STM: space-time memory networks.

S. W. Oh, J.-Y. Lee, N. Xu, S. J. Kim: "A Unified Model for Semi-supervised and Interactive Video Object
Segmentation using Space-time Memory Networks", DAVIS Challenge 2019; section numbers are that paper's.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks.parts import Parts, sizes

PAPER = Parts(
    backbone="resnet50",  # 2.1, for both encoders
    memory_encoder="key-value",  # 2.1, "the memory encoder has the same structure except for the inputs"
    memory_input="mask+others",  # 2.1 names the mask; the published code adds a plane of the other objects
    key_channels=128,
    value_channels=512,  # 2.1; numbers from the published code
    reader="dense",  # 2.2, equations 1 and 2
    scale="sqrt",  # the published code; the paper's equation 2 has no divisor
    decoder="stm",  # 2.3, the refinement module of RGMP
    decoder_channels=256,
    aggregation="soft",  # the published code; section 3.4 of the conference paper
    memory_policy="previous",  # 3.1, "the first and the latest previous frame ... every N frames"
)
SIZES = sizes(PAPER)

INTERACTIVE = replace(
    PAPER,
    memory_input="mask+scribbles",  # 2.1, "the object mask and the user scribbles", two channels of scribbles
    memory_policy="given",  # 3.2, "we consider frames given with user interaction as the memory frames"
)
INTERACTIVE_SIZES = sizes(INTERACTIVE)

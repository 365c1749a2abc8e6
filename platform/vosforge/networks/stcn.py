"""STCN: space-time correspondence networks.

H. K. Cheng, Y.-W. Tai, C.-K. Tang: "Rethinking Space-Time Networks with Improved Memory Coverage for Efficient Video
Object Segmentation", NeurIPS 2021; section numbers are that paper's. Numbers follow the published code.
"""

from __future__ import annotations

from vosforge.networks.parts import Parts, sizes

PAPER = Parts(
    backbone="resnet50",
    memory_encoder="value",  # 3.2: keys come from the image alone, memory and query share the encoder
    memory_backbone="resnet18",  # 3.2, the value encoder
    key_channels=64,
    value_channels=512,
    reader="topk",
    top_k=20,
    similarity="l2",  # 4.1, negative squared Euclidean distance
    decoder="stcn",
    memory_policy="every",  # 4.3: without the previous frame
    padding="mean",
    memorise_margin=True,
)
SIZES = sizes(PAPER)

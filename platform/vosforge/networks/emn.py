"""EMN: the enhanced memory network.

Z. Zhou, L. Ren, P. Xiong, Y. Ji, P. Wang, H. Fan, S. Liu: "Enhanced Memory Network for Video Segmentation",
YouTube-VOS Challenge 2019; section and equation numbers are that paper's.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks import stm
from vosforge.networks.parts import sizes

PAPER = replace(
    stm.PAPER,  # 2.1, equations 1 to 3
    memory_input="mask",  # 2.1; objects are segmented apart (3.2), so there are no others to show
    siamese=True,  # 2.2, the siamese query encoder, equations 7 and 8
    correlation="depthwise",  # equation 8 says "convolution"; channel by channel, as trackers do
    aspp="decoder",  # 2.2, the pyramid decoder: "adding an ASPP module to the decoder"
    aspp_dilations=(1, 6, 12, 18),  # not given; those of DeepLab, from where ASPP comes
    aspp_norm="batch",
    aspp_pooling=True,
    aspp_dropout=0.1,
    training_objects="one",  # 3.1, "we randomly select one instance"
    aggregation="soft",  # 3.2 and table 1; at test only, the background is not tracked
)
SIZES = sizes(PAPER)

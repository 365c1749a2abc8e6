"""CFBI+: collaborative video object segmentation by multi-scale foreground-background integration. CAMN builds on it.

Z. Yang, Y. Wei, Y. Yang, TPAMI 2021. Numbers follow the published code.
"""

from __future__ import annotations

from dataclasses import replace

from vosforge.networks.collaborative import CollaborativeParts

PAPER = CollaborativeParts()
_SMALL = replace(
    PAPER,
    backbone="resnet18",
    embedding_channels=64,
    matching_channels=(16, 32, 64),
    ensembler_channels=64,
    refine_channels=32,
    aspp_norm="group",
    frozen_batch_norm=False,
)
_NANO = replace(
    _SMALL,
    backbone="test_resnet",
    embedding_channels=32,
    matching_channels=(8, 16, 32),
    windows_4=(2, 4, 8),
    windows_8=(1, 2, 4),
    windows_16=(1, 2),
    ensembler_channels=32,
    refine_channels=16,
    aspp_dilations=(1, 2, 4),
)
SIZES = {"nano": _NANO, "small": _SMALL, "paper": PAPER}

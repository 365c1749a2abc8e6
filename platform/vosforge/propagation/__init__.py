"""Propagation: the memory bank, video propagation, baselines, ensembles, models."""

from vosforge.propagation.baselines import CopyFirstMask, OpticalFlow
from vosforge.propagation.memory import MemoryBank
from vosforge.propagation.model import Model, save_model
from vosforge.propagation.propagator import Propagator
from vosforge.propagation.segmenter import Ensemble, Segmenter, given_masks, segment_clip, segment_frame

__all__ = [
    "CopyFirstMask",
    "Ensemble",
    "MemoryBank",
    "Model",
    "OpticalFlow",
    "Propagator",
    "Segmenter",
    "given_masks",
    "save_model",
    "segment_clip",
    "segment_frame",
]

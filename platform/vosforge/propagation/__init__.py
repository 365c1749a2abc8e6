"""Propagation: the memory bank, video propagation, baselines, ensembles, models."""

from vosforge.propagation.baselines import CopyFirstMask, OpticalFlow
from vosforge.propagation.ensemble import Ensemble, FlipAndScales, View
from vosforge.propagation.memory import MemoryBank
from vosforge.propagation.model import Model, save_model
from vosforge.propagation.propagator import Propagator
from vosforge.propagation.refinement import Refined
from vosforge.propagation.scribbles import read_scribbles
from vosforge.propagation.segmenter import Segmenter, given_masks, segment_clip, segment_frame
from vosforge.propagation.session import Round, Session
from vosforge.propagation.together import propagate

__all__ = [
    "CopyFirstMask",
    "Ensemble",
    "FlipAndScales",
    "MemoryBank",
    "Model",
    "OpticalFlow",
    "Propagator",
    "Refined",
    "Round",
    "Segmenter",
    "Session",
    "View",
    "given_masks",
    "propagate",
    "read_scribbles",
    "save_model",
    "segment_clip",
    "segment_frame",
]

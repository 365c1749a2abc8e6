"""Networks: compositions of shared parts, one short file a paper.

`build` makes a network by name, size and parts; `save` and `load` carry one in a single safetensors file.
"""

from vosforge.networks.aggregation import aggregate, soft_aggregate
from vosforge.networks.base import MemoryNetwork, Prediction, Query
from vosforge.networks.building import NETWORKS, SIZES, build, describe, load, load_weights, preset, save
from vosforge.networks.parts import Parts
from vosforge.networks.published import from_published
from vosforge.networks.readers import DenseReader, KernelReader, SpatialReader, TopKReader
from vosforge.networks.stacking import StackingNetwork

__all__ = [
    "NETWORKS",
    "SIZES",
    "DenseReader",
    "KernelReader",
    "MemoryNetwork",
    "Parts",
    "Prediction",
    "Query",
    "SpatialReader",
    "StackingNetwork",
    "TopKReader",
    "aggregate",
    "build",
    "describe",
    "from_published",
    "load",
    "load_weights",
    "preset",
    "save",
    "soft_aggregate",
]

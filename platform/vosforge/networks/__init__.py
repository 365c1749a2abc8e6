"""Networks: compositions of shared parts, one short file a paper.

`build` makes a network by name, size and parts; `save` and `load` carry one in a single safetensors file.
"""

from vosforge.networks.aggregation import soft_aggregate
from vosforge.networks.base import MemoryNetwork, Query
from vosforge.networks.building import NETWORKS, SIZES, build, describe, load, load_weights, save
from vosforge.networks.readers import DenseReader, TopKReader

__all__ = [
    "NETWORKS",
    "SIZES",
    "DenseReader",
    "MemoryNetwork",
    "Query",
    "TopKReader",
    "build",
    "describe",
    "load",
    "load_weights",
    "save",
    "soft_aggregate",
]

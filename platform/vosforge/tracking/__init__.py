"""Tracking: MLflow runs, best effort."""

from vosforge.tracking.runs import Run
from vosforge.tracking.stores import connect, default_store, experiment, first_line

__all__ = ["Run", "connect", "default_store", "experiment", "first_line"]

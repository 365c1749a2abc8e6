"""Tracking: MLflow runs, best effort."""

from vosforge.tracking.runs import Run, connect, default_store, experiment, first_line

__all__ = ["Run", "connect", "default_store", "experiment", "first_line"]

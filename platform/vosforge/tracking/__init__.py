"""Tracking: MLflow runs, best effort."""

from vosforge.tracking.runs import Run, default_store, experiment, first_line

__all__ = ["Run", "default_store", "experiment", "first_line"]

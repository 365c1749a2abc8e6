"""Tracking: MLflow runs, best effort."""

from vosforge.tracking.runs import Run, default_store

__all__ = ["Run", "default_store"]

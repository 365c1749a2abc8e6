"""Tracking: MLflow runs, best effort."""

from vosforge.tracking.runs import Run
from vosforge.tracking.stores import default_store, first_line, redacted

__all__ = ["Run", "default_store", "first_line", "redacted"]

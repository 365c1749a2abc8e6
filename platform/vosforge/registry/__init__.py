"""Registry: the MLflow form of a model, and versions with aliases."""

from vosforge.registry.versions import load_model, register

__all__ = ["load_model", "register"]

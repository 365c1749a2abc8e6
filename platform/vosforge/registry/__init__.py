"""Registry: the MLflow form of a model, and versions with aliases."""

from vosforge.registry.versions import load_model, register, version_uri

__all__ = ["load_model", "register", "version_uri"]

"""Registry: the MLflow form of a model, versions with aliases, and the gate before the champion."""

from vosforge.registry.champions import roll_back
from vosforge.registry.evaluations import Evaluation, read_report
from vosforge.registry.uris import digest_of, version_uri
from vosforge.registry.versions import Candidacy, load_model, promote, register

__all__ = [
    "Candidacy",
    "Evaluation",
    "digest_of",
    "load_model",
    "promote",
    "read_report",
    "register",
    "roll_back",
    "version_uri",
]

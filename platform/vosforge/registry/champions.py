"""Who is champion: the alias, those who were it before, and the way back."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vosforge.errors import UserError
from vosforge.registry.promotion import Decision
from vosforge.tracking import first_line, redacted
from vosforge.tracking.clients import connect

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY_TAG = "vosforge.champions"
"""Of a registered model: versions that were champion, in that order, the present one last."""
# MLflow's own rule; names like those of versions lead elsewhere.
_ALIAS, _NO_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}"), re.compile(r"latest|v\d+", re.IGNORECASE)
PROMOTION_TAG, FORCED_TAG, ROLLED_BACK_TAG = "vosforge.promotion", "vosforge.forced", "vosforge.rolled_back"
REPLACED_TAG = "vosforge.replaced"
"""Of a version: which of its evaluations gave way to others, when and why."""


def check_alias(alias: str | None) -> None:
    """Refuse an alias that MLflow would refuse once the version is there.

    Raises:
        UserError: for such an alias.
    """
    if alias is not None and (not _ALIAS.fullmatch(alias) or _NO_ALIAS.fullmatch(alias)):
        raise UserError(
            f"--alias {alias}: expected letters, digits, - and _, at most 255, but not latest or v with a number; "
            "choose another name"
        )


def champion_of(client: MlflowClient, name: str) -> str | None:
    """Version of the present champion; None where there is none, or no model of that name."""
    return aliases_of(client, name).get(CHAMPION)


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Versions of a registered model by alias; empty where there is no model of that name.

    Raises:
        MlflowException: when the store does not answer.
    """
    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


def crown(client: MlflowClient, name: str, version: str, decision: Decision) -> None:
    """Make a version champion, and write down why. The alias moves last."""
    note(client, name, version, decision)
    present = champion_of(client, name)
    if present == version:
        return
    before = [*_before(_history(client, name), present), *([present] if present else [])]
    client.set_registered_model_tag(name, HISTORY_TAG, " ".join([*before, version]))
    client.set_registered_model_alias(name, CHAMPION, version)


def note(client: MlflowClient, name: str, version: str, decision: Decision) -> None:
    """Write a decision into a version's tags."""
    client.set_model_version_tag(name, version, PROMOTION_TAG, decision.as_json())
    if decision.forced is not None:
        client.set_model_version_tag(name, version, FORCED_TAG, decision.forced)


def note_replaced(client: MlflowClient, name: str, version: str, sets: list[str], reason: str) -> None:
    """Add to a version's tags that evaluations on these sets were replaced, when and why."""
    earlier = json.loads(client.get_model_version(name, version).tags.get(REPLACED_TAG, "[]"))
    told = {"sets": sets, "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "reason": reason}
    client.set_model_version_tag(name, version, REPLACED_TAG, json.dumps([*earlier, told]))


def roll_back(name: str, store: str, reason: str | None = None) -> tuple[str, str]:
    """Put the former champion back; the present one is tagged with when and why.

    Args:
        name: of the registered model.
        store: tracking URI.
        reason: for the tag.

    Returns:
        The version that was champion, and the one that is it now.

    Raises:
        UserError: when there is no champion, or none before it that still exists.
    """
    client = connect(store)
    try:
        present = champion_of(client, name)
        if present is None:
            raise UserError(f"{name}: no champion in MLflow at {redacted(store)}, so nothing to put back")
        before = _before(_history(client, name), present)
        existing = [version for version in before if _exists(client, name, version)]
        if not existing:
            raise UserError(f"{name}: no former champion of version {present} is left; give another version the alias")
        former = existing[-1]
        told = {"to": former, "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "reason": reason}
        client.set_model_version_tag(name, present, ROLLED_BACK_TAG, json.dumps(told))
        # Whoever looks between the two lines finds the former champion in the history, whichever alias it sees.
        client.set_registered_model_alias(name, CHAMPION, former)
        client.set_registered_model_tag(name, HISTORY_TAG, " ".join([*before[: before.index(former)], former]))
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {redacted(store)}: {name} was not rolled back: {first_line(error)}") from error
    return present, former


def _history(client: MlflowClient, name: str) -> list[str]:
    return client.get_registered_model(name).tags.get(HISTORY_TAG, "").split()


def _before(history: list[str], present: str | None) -> list[str]:
    """Those before the present champion; an alias that was moved by hand is not in the history, which then is all."""
    if present not in history:
        return history
    return history[: len(history) - 1 - history[::-1].index(present)]


def _exists(client: MlflowClient, name: str, version: str) -> bool:
    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True

"""Range checks of recipes: one `UserError` that names the recipe, its field, what was expected and what was found."""

from __future__ import annotations

from typing import Any

from vosforge.errors import UserError


def require_number(owner: str, recipe: Any, name: str, low: float, high: float, whole: bool = False) -> None:
    """Refuse a field that is no finite number of a closed range.

    Args:
        owner: what the recipe is called in the message.
        recipe: an object with the field.
        name: of the field.
        low, high: ends of the range, both allowed.
        whole: whether only whole numbers are.

    Raises:
        UserError: when it is not.
    """
    if not _is_number(getattr(recipe, name), low, high, whole):
        refuse(owner, recipe, name, f"{_kind(whole)} in {low}..{high}")


def require_pair(
    owner: str, recipe: Any, name: str, low: float, high: float, whole: bool = False, ascending: bool = True
) -> None:
    """Refuse a field that is no pair of finite numbers of a closed range; arguments as of `require_number`.

    A list, as JSON brings it, becomes a tuple, so that the recipe stays hashable.

    Args:
        ascending: whether the second must be at least the first.

    Raises:
        UserError: when it is not.
    """
    value = getattr(recipe, name)
    if isinstance(value, list):
        value = tuple(value)
        object.__setattr__(recipe, name, value)
    fits = isinstance(value, tuple) and len(value) == 2 and all(_is_number(v, low, high, whole) for v in value)
    if not fits or (ascending and value[0] > value[1]):
        rising = ", the second at least the first" if ascending else ""
        refuse(owner, recipe, name, f"a pair of {'whole ' if whole else ''}numbers in {low}..{high}{rising}")


def refuse(owner: str, recipe: Any, name: str, expected: str) -> None:
    """Raise the `UserError` of a field."""
    raise UserError(f"{owner}: {name} must be {expected}, found {getattr(recipe, name)!r}")


def _kind(whole: bool) -> str:
    return "a whole number" if whole else "a number"


def _is_number(value: object, low: float, high: float, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    # Comparisons with NaN are false, so it lies in no range.
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

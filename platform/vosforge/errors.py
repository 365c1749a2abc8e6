"""The error that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Input that vosforge refuses.

    The message is one line: the file or field, what was expected, what was found, and the way out. Programs
    print it and exit with status 2; they never print a traceback for it unless `--verbose` asks for one.
    """


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` that an exception of Ray carries from another process; None when there is none."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray raises a class made of its own and the original one; only the original's message is one line.
        if isinstance(current, UserError) and getattr(current, "cause", None) is None:
            return current
        failures = getattr(current, "worker_failures", {}).values()
        waiting += [getattr(current, "cause", None), current.__cause__, *failures]
    return None

"""The token that clients must bear, where one is asked for."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from vosforge.errors import UserError
from vosforge.reading import reading
from vosforge.serving.limits import Unauthorised

VARIABLE = "VOSFORGE_TOKEN"
_SHORTEST = 16


class Access:
    """Lets in who bears the token; everybody where there is none.

    What is kept, and travels to other processes, is the token's digest alone.

    Args:
        token: at least 16 printable ASCII characters; None asks for none.

    Raises:
        UserError: for a shorter one, or one that no header can carry.
    """

    def __init__(self, token: str | None):
        if token is not None and len(token) < _SHORTEST:
            raise UserError(f"the token: expected at least {_SHORTEST} characters, found {len(token)}")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise UserError("the token: expected printable ASCII characters, found others, which no header can carry")
        self._digest = None if token is None else _digest(token)

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return self._digest is None

    def check(self, authorization: str | None) -> None:
        """Refuse an `Authorization` header that does not bear the token, in a time that tells nothing of it.

        Raises:
            Unauthorised: without telling what was found.
        """
        if self._digest is None:
            return
        scheme, _, token = (authorization or "").partition(" ")
        same = hmac.compare_digest(_digest(token.strip()), self._digest)
        if scheme.lower() != "bearer" or not same:
            raise Unauthorised("expected the header 'Authorization: Bearer <token>' with this server's token")


def read_token(file: Path | None) -> str | None:
    """The token in a file, else in the environment variable `VOSFORGE_TOKEN`; None where there is neither.

    Raises:
        UserError: for a file that cannot be read, or is empty.
    """
    if file is None:
        return os.environ.get(VARIABLE, "").strip() or None
    with reading(file):
        token = file.read_text().strip()
    if not token:
        raise UserError(f"{file}: expected a token, found an empty file")
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()

"""What is not answered, in HTTP's way: one form for refusals, and for faults of the server's own."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from vosforge.errors import UserError
from vosforge.serving.access import Access
from vosforge.serving.limits import Failed, Malformed, Refused, Unauthorised
from vosforge.serving.metrics import Requests

logger = logging.getLogger(__name__)
# Requests whose client did not wait for the answer are counted so, as nginx does.
_LEFT = 499


class Refusal(BaseModel):
    """Why a request is not answered."""

    error: str


def add_refusals(app: FastAPI) -> None:
    """Answer refusals of the routes, and of those who find none, with a `Refusal`."""

    @app.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        return _refusal(malformed(error.errors()))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return _answer(
            error.status_code, f"{request.method[:20]} {request.url.path[:80]}: {error.detail}", error.headers
        )


def watch(app: FastAPI, access: Access, requests: Requests) -> None:
    """Let in who may, count all requests, and answer what fails for no known reason without telling of the inside."""

    @app.middleware("http")
    async def watched(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        started, status = time.monotonic(), _LEFT
        try:
            response = await _answered(request, call, access)
            status = response.status_code
            return response
        finally:
            # The route's pattern, that no session's id becomes a label.
            route = getattr(request.scope.get("route"), "path", "other")
            requests.note(request.method, route, status, time.monotonic() - started)


async def _answered(request: Request, call: Callable[[Request], Awaitable[Response]], access: Access) -> Response:
    try:
        if request.url.path.startswith(("/v1/", "/metrics")):
            access.check(request.headers.get("authorization"))
        return await call(request)
    except UserError as error:
        return _refusal(error)
    except Exception:
        logger.exception("a request failed")
        return _refusal(Failed("the server failed at this request; its log says why"))


def malformed(faults: Sequence[Mapping[str, Any]]) -> Malformed:
    """The refusal of what pydantic found, which leaves out what was sent: that may be long, or no text."""
    first = faults[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "path", "query"))
    return Malformed(f"{field[:80] or 'body'}: {first['msg'][:200]}")


def _refusal(error: UserError) -> Response:
    status = error.status if isinstance(error, Refused) else 400
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}
    if isinstance(error, Refused) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return _answer(status, str(error), headers)


def _answer(status: int, told: str, headers: Mapping[str, str] | None) -> Response:
    # In ASCII, since names in archives need not be text that UTF-8 can carry.
    return Response(json.dumps({"error": told}), status, headers, "application/json")

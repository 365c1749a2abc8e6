"""The HTTP interface: routes, and bodies within their limits. What they do is the store's.

Bodies are the images and archives themselves; no request names a path or an address for the server to open.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Protocol

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

import vosforge
from vosforge.serving.access import Access
from vosforge.serving.limits import Limits, Refused, Slow, TooMany
from vosforge.serving.media import check_bytes
from vosforge.serving.metrics import Requests, exposition
from vosforge.serving.refusals import Refusal, add_refusals, malformed, watch
from vosforge.serving.store import slot_of

JSON, PNG, TAR = "application/json", "image/png", "application/x-tar"
_OPENING_MIB = 1


class Backend(Protocol):
    """Where the sessions are: one `SessionStore` a slot."""

    async def ask(self, slot: int, method: str, *arguments: Any) -> Any:
        """Call a method of a slot's store.

        Raises:
            UserError: what the store raises; `Unready` when the slot's process ended meanwhile.
        """

    async def choose(self) -> int:
        """The slot for a new session or clip."""

    async def all_stats(self) -> dict[int, dict[str, Any] | None]:
        """`SessionStore.stats` of every slot; None of those that do not answer."""


class Opening(BaseModel):
    """What a session is opened with."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["stream", "interactive"] = Field("stream", description="Frame by frame, or corrected in rounds.")
    short_side: int | None = Field(
        None, description="Pixels to which frames are reduced; by default as the model says."
    )


def make_app(backend: Backend, limits: Limits, access: Access) -> FastAPI:
    """The application.

    Args:
        backend: holds the sessions.
        limits: of bodies.
        access: who is let in.
    """
    app = FastAPI(
        title="vosforge",
        version=vosforge.__version__,
        description="Segments videos from first masks, frame by frame, or in rounds with a user. Every request but the "
        "opening of a session may be repeated with the same body and has the same answer; after a 503, repeat it.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # `Access` checks the token; this has the page at /docs ask for it.
        dependencies=[] if access.open else [Security(HTTPBearer(auto_error=False))],
        responses={"default": {"description": "Refused, or failed.", "model": Refusal}},
    )
    requests = Requests()
    watch(app, access, requests)
    add_refusals(app)
    _add_clips(app, backend, limits)
    _add_sessions(app, backend, limits)
    _add_frames(app, backend, limits)
    _add_rounds(app, backend, limits)
    _add_health(app, backend, requests)
    return app


def _add_clips(app: FastAPI, backend: Backend, limits: Limits) -> None:
    under_way: set[Request] = set()

    @app.post("/v1/segment", openapi_extra=_body(TAR), response_class=Response, responses=_answers(TAR))
    async def segment(request: Request) -> Response:
        """Segment a whole clip.

        The body is a tar archive of JPEG or PNG frames, in the order of the numbers in their names, with `mask.png` for
        the first frame, or `masks/<frame>.png` for the frames where objects appear. The answer is a tar archive of
        palette PNGs named as the frames.
        """
        # Refused before it is read, so that many together do not fill the memory.
        if len(under_way) >= limits.max_clips:
            raise TooMany(f"clips: {limits.max_clips} are under way; wait, or send frames in a session")
        under_way.add(request)
        try:
            data = await _read(request, limits.max_clip_mib, "clip", limits)
            return Response(await backend.ask(await backend.choose(), "segment", data), media_type=TAR)
        finally:
            under_way.discard(request)


def _add_sessions(app: FastAPI, backend: Backend, limits: Limits) -> None:
    described = {"requestBody": {"required": True, "content": {JSON: {"schema": Opening.model_json_schema()}}}}

    @app.post("/v1/sessions", status_code=201, openapi_extra=described)
    async def open_session(request: Request) -> dict[str, Any]:
        """Open a session with the newest version of the model, which it keeps until it is closed."""
        if not _is_json(request):
            # Pages of other origins can send anything else without asking first.
            raise Refused(f"session: expected a body with Content-Type: {JSON}")
        data = await _read(request, _OPENING_MIB, "session", limits)
        try:
            opening = Opening.model_validate_json(data)
        except ValidationError as error:
            raise malformed(error.errors()) from error
        return await backend.ask(await backend.choose(), "open", opening.kind, opening.short_side)

    @app.get("/v1/sessions/{session}")
    async def session_state(session: str) -> dict[str, Any]:
        """What a session has so far; during a round, how many of how many frames are segmented."""
        return await backend.ask(slot_of(session), "state", session)

    @app.delete("/v1/sessions/{session}", status_code=204)
    async def close_session(session: str) -> Response:
        """Close a session and delete what is kept of it."""
        await backend.ask(slot_of(session), "close", session)
        return Response(status_code=204)


def _add_frames(app: FastAPI, backend: Backend, limits: Limits) -> None:
    @app.put("/v1/sessions/{session}/frames/{t}", openapi_extra=_body("image/jpeg", PNG), responses=_answers(PNG))
    async def put_frame(session: str, t: int, request: Request) -> Response:
        """Send frame t, a JPEG or PNG, counted from 0.

        A stream answers its mask, a palette PNG. An interactive session takes its frames before the first round, and
        answers 204.
        """
        slot = slot_of(session)
        data = await _read(request, limits.max_image_mib, f"frame {t}", limits)
        answer = await backend.ask(slot, "put_frame", session, t, data)
        return Response(answer, media_type=PNG) if answer else Response(status_code=204)

    @app.put("/v1/sessions/{session}/masks/{t}", status_code=204, openapi_extra=_body(PNG))
    async def put_mask(session: str, t: int, request: Request) -> Response:
        """Give a stream the mask of frame t, a PNG of object ids, before the frame itself is sent."""
        slot = slot_of(session)
        data = await _read(request, limits.max_image_mib, f"mask {t}", limits)
        await backend.ask(slot, "put_mask", session, t, data)
        return Response(status_code=204)

    @app.get("/v1/sessions/{session}/masks/{t}", response_class=Response, responses=_answers(PNG))
    async def get_mask(session: str, t: int) -> Response:
        """The mask of frame t as it is now, a palette PNG."""
        return Response(await backend.ask(slot_of(session), "mask", session, t), media_type=PNG)

    @app.get("/v1/sessions/{session}/masks", response_class=Response, responses=_answers(TAR))
    async def get_masks(session: str) -> Response:
        """The masks of all frames, a tar archive of palette PNGs."""
        return Response(await backend.ask(slot_of(session), "masks", session), media_type=TAR)


def _add_rounds(app: FastAPI, backend: Backend, limits: Limits) -> None:
    @app.put("/v1/sessions/{session}/rounds/{n}", openapi_extra=_body(PNG, JSON))
    async def put_round(session: str, n: int, frame: int, request: Request) -> dict[str, Any]:
        """Round n of an interactive session, counted from 1: touch one frame, and all frames follow.

        The body is the true mask of that frame, a PNG, or scribbles as JSON: a list of strokes `{"path": [[x, y], ...],
        "object_id": k}` with coordinates in [0, 1], or the content of a DAVIS scribble file. While it runs, the
        session's state tells its progress.
        """
        slot = slot_of(session)
        data = await _read(request, limits.max_image_mib, f"round {n}", limits)
        kind = "drawn" if _is_json(request) else "corrected"
        return await backend.ask(slot, "put_round", session, n, frame, kind, data)

    @app.delete("/v1/sessions/{session}/rounds/{n}")
    async def undo(session: str, n: int) -> dict[str, Any]:
        """Take round n, the latest, back."""
        return await backend.ask(slot_of(session), "undo", session, n)


def _add_health(app: FastAPI, backend: Backend, requests: Requests) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 while at least one replica answers, else 503."""
        stats = await backend.all_stats()
        answering = [each for each in stats.values() if each is not None]
        content = {"replicas": len(stats), "answering": len(answering), "version": vosforge.__version__}
        return JSONResponse(content, 200 if answering else 503, {} if answering else {"Retry-After": "1"})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts, sizes and times in the Prometheus text format."""
        text, media_type = exposition(requests, await backend.all_stats())
        return Response(text, headers={"Content-Type": media_type})


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON


async def _read(request: Request, most_mib: int, name: str, limits: Limits) -> bytes:
    """A request's body, refused as soon as it is known to be too large, or has taken too long."""
    try:
        return await asyncio.wait_for(_received(request, most_mib, name), limits.upload_seconds)
    except asyncio.TimeoutError as error:
        raise Slow(f"{name}: expected the whole body within {limits.upload_seconds:g} seconds") from error
    except ClientDisconnect as error:
        raise Refused(f"{name}: the body ends early; send all of it") from error


async def _received(request: Request, most_mib: int, name: str) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        check_bytes(int(declared[:18]), most_mib, name)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        check_bytes(size, most_mib, name)
        parts.append(part)
    return b"".join(parts)


def _body(*media_types: str) -> dict[str, Any]:
    """A body of bytes, in the words of OpenAPI."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {media: {} if media == JSON else binary for media in media_types}
    return {"requestBody": {"required": True, "content": content}}


def _answers(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {}}}}

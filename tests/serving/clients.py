"""Clients of the interface, in one process with it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi.testclient import TestClient

TOKEN = "correct-horse-battery"


class InProcess:
    """The one slot of this process."""

    def __init__(self, store: Any):
        self.store = store

    async def ask(self, slot: int, method: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(getattr(self.store, method), *arguments)

    async def choose(self) -> int:
        return 0

    async def all_stats(self) -> dict[int, dict[str, Any] | None]:
        return {0: self.store.stats(), 1: None}


def opened(client: TestClient, **body: Any) -> str:
    answer = client.post("/v1/sessions", json=body)
    assert answer.status_code == 201, answer.text
    return f"/v1/sessions/{answer.json()['session']}"

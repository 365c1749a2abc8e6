"""The Ray Serve application: an ingress that holds nothing, and one deployment of one replica for every slot.

A session's id begins with its slot, so the ingress needs no table to find the replica that has it, and neither a
restart of the ingress nor a second one changes where a session is. Serve's own ways to send like requests to like
replicas (multiplexed models, sessions by header) prefer a replica without promising it, and two that both held a
session would drift apart. A deployment a slot promises it: Serve keeps exactly one replica of each alive. When that
dies, Serve starts another, on any node, which brings its sessions back from the journal as they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from vosforge.errors import UserError
from vosforge.serving.access import Access
from vosforge.serving.api import make_app
from vosforge.serving.holding import AT_ONCE
from vosforge.serving.journal import Journal
from vosforge.serving.limits import Limits, NotFound, Unready
from vosforge.serving.models import shelf
from vosforge.serving.store import SessionStore
from vosforge.settings import AS_SAVED, Settings

logger = logging.getLogger(__name__)
APPLICATION = "vosforge"
_SECONDS_TO_ANSWER = 5.0
# Requests that wait for a place in the ingress; Serve answers further ones with 503.
_MOST_QUEUED = 200
# A dead replica is found by its actor's end, at the next of these.
_HEALTH = {"health_check_period_s": 1, "health_check_timeout_s": 60, "graceful_shutdown_timeout_s": 5}


@dataclass(frozen=True)
class Plan:
    """What is served, and how.

    Attributes:
        model: as `models.shelf` takes it, absolute.
        store: tracking URI of MLflow.
        journal: URI that all replicas reach.
        limits: of each replica.
        replicas: processes that hold sessions.
        batch: most frames in one forward.
        threads: of torch in each replica.
        device: cpu, or cuda, of which each replica gets a GPU.
        settings: how the model runs.
        seconds_between_looks: for a newer version of the model.
    """

    model: str
    store: str
    journal: str
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1
    batch: int = 8
    threads: int = 1
    device: str = "cpu"
    settings: Settings = AS_SAVED
    seconds_between_looks: float = 15.0


class Replica:
    """Holds the sessions of one slot."""

    def __init__(self, plan: Plan, slot: int):
        torch.set_num_threads(plan.threads)
        models = shelf(plan.model, plan.store, plan.device, plan.settings)
        self._store = SessionStore(models, Journal(plan.journal), plan.limits, slot, plan.batch)
        self._threads = ThreadPoolExecutor(_requests_at_once(plan.limits), thread_name_prefix="requests")
        _repeat(self._store.refresh, plan.seconds_between_looks)
        _repeat(self._store.expire, min(5.0, plan.limits.idle_seconds / 2))

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the store; a `UserError` is the answer, not raised, since Serve logs what is raised."""
        call = getattr(self._store, method)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        except UserError as error:
            return error


def _requests_at_once(limits: Limits) -> int:
    """Of one replica. Each waits in a thread, and some are left for what is refused, for counts and for health."""
    return AT_ONCE * limits.max_sessions + limits.max_clips + 8


def _repeat(action: Callable[[], None], seconds: float) -> None:
    """Do something now and then, as long as the process lives."""

    def work(rest: threading.Event) -> None:
        while not rest.wait(seconds):
            try:
                action()
            except Exception:
                logger.exception("%s failed; it is tried again", action.__name__)

    threading.Thread(target=work, args=(threading.Event(),), daemon=True).start()


class Handles:
    """The slots' replicas, as the interface asks them.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int):
        self._handles = [serve.get_deployment_handle(_name(slot), APPLICATION) for slot in range(slots)]
        self._turn = itertools.count()

    async def ask(self, slot: int, method: str, *arguments: Any) -> Any:
        """Call a method of a slot's store; waits while Serve starts a replica in place of a dead one."""
        if slot >= len(self._handles):
            # A server with more slots opened it; the journal has it, so that one with as many can go on.
            raise NotFound(f"session: is of replica {slot}, this server has {len(self._handles)}; start more")
        try:
            answer = await self._handles[slot].ask.remote(method, *arguments)
        except (RayActorError, DeploymentUnavailableError) as error:
            raise Unready("the replica of this session ended; repeat the request") from error
        except RayServeException as error:
            raise Unready("the replica of this session is not ready; repeat the request") from error
        if isinstance(answer, UserError):
            raise answer
        return answer

    async def choose(self) -> int:
        """The slots in turn, those first that answer with the fewest sessions."""
        stats = {slot: found for slot, found in (await self.all_stats()).items() if found is not None}
        if not stats:
            raise Unready("no replica is ready; repeat the request")
        turn = next(self._turn)
        return min(stats, key=lambda slot: (stats[slot]["sessions"], (slot - turn) % len(self._handles)))

    async def all_stats(self) -> dict[int, dict[str, Any] | None]:
        """The counts of every slot."""
        found = await asyncio.gather(*(self._stats(handle) for handle in self._handles))
        return dict(enumerate(found))

    async def _stats(self, handle: DeploymentHandle) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(_awaited(handle.ask.remote("stats")), _SECONDS_TO_ANSWER)
        except (RayActorError, RayServeException, TimeoutError, asyncio.TimeoutError):
            return None


async def _awaited(response: Any) -> Any:
    return await response


def start(plan: Plan, access: Access, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Start the application on the cluster that this process is connected to, and return when it answers.

    Raises:
        UserError: when it cannot be started, for a port that is taken for example.
    """
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    limits, slots = plan.limits, plan.replicas

    def build() -> FastAPI:
        return make_app(Handles(slots), limits, access)

    at_once = _requests_at_once(limits)
    resources = {"num_cpus": 0, "num_gpus": int(plan.device != "cpu")}
    replicas = [
        serve.deployment(Replica)
        .options(
            name=_name(slot),
            num_replicas=1,
            ray_actor_options=resources,
            max_ongoing_requests=at_once,
            logging_config=quiet,
            **_HEALTH,
        )
        .bind(plan, slot)
        for slot in range(slots)
    ]
    ingress = serve.deployment(serve.ingress(build)()).options(
        name="ingress",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=slots * at_once,
        max_queued_requests=_MOST_QUEUED,
        logging_config=quiet,
        **_HEALTH,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=host, port=port), logging_config=quiet)
        serve.run(ingress.bind(*replicas), name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayActorError, OSError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Ray Serve on {host}:{port} cannot be started: {told}") from error


def stop(seconds: float = 30.0) -> bool:
    """End the application, and the cluster where it is this process's own; sessions stay in the journal.

    Returns:
        Whether all ended in time. Where someone ended the cluster's processes together with this one, as systemd does,
        Ray goes on asking for them.
    """
    ending = threading.Thread(target=_end, daemon=True)
    ending.start()
    ending.join(seconds)
    return not ending.is_alive()


def _end() -> None:
    with contextlib.suppress(RayServeException, RayError, TimeoutError):
        if ray.is_initialized():
            serve.delete(APPLICATION)
    ray.shutdown()


def _name(slot: int) -> str:
    return f"replica-{slot}"

"""The models that a replica serves: the newest for new sessions, older ones for the sessions that began with them."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.propagation.model import Model, model_digest
from vosforge.propagation.segmenter import Segmenter
from vosforge.propagation.user_memory import takes_scribbles
from vosforge.registry import load_model, version_uri
from vosforge.settings import AS_SAVED, Settings
from vosforge.storage import absolute, local_path

logger = logging.getLogger(__name__)
_DIGEST = "#sha256:"


class Served:
    """One version of a model, loaded.

    Args:
        version: its name, by which it can be loaded again.
        model: its networks.
        device, settings: as `Model.start` takes them.

    Attributes:
        name: what clients are told of it, which names no path.
        short_side: pixels to which its frames are reduced; None keeps their size.
    """

    def __init__(self, version: str, model: Model, device: str = "cpu", settings: Settings = AS_SAVED):
        self.version = version
        path, mark, digest = version.partition(_DIGEST)
        self.name = f"{local_path(path).name}{mark}{digest[:12]}" if mark else version
        self.short_side = model.short_side
        self._first = model.start(device, settings)
        member = model.members[0]
        draws = len(model.members) == 1 and isinstance(member, MemoryNetwork) and takes_scribbles(member)
        # One network that takes scribbles is what an interactive session of its own kind needs; others take masks.
        self.drawn_on = member if draws else None
        self.options = {"device": device, "precision": settings.precision} if draws else {}

    def start(self) -> Segmenter:
        """A fresh segmenter; all of them share the networks, so that their steps can be one batch."""
        return self._first.fresh()


class Shelf:
    """Loaded versions of one model.

    A version stays loaded while it is the newest or a session holds it.

    Args:
        newest: tells the version that new sessions get.
        load: loads a version.
    """

    def __init__(self, newest: Callable[[], str], load: Callable[[str], Served]):
        self._newest, self._load = newest, load
        self._loading = threading.Lock()
        self._known: weakref.WeakValueDictionary[str, Served] = weakref.WeakValueDictionary()
        self.current = self.get(newest())

    @property
    def versions(self) -> list[str]:
        """Versions that are loaded."""
        return sorted(self._known)

    def get(self, version: str) -> Served:
        """A version, loaded when it is not yet.

        Raises:
            UserError: when it cannot be loaded.
        """
        # Sessions whose version is there do not wait while another one loads.
        if (served := self._known.get(version)) is not None:
            return served
        with self._loading:
            served = self._known.get(version)
            if served is None:
                served = self._known[version] = self._load(version)
            return served

    def refresh(self) -> bool:
        """Ask for the newest version and load it; whether it is another one. When that fails the present one stays."""
        try:
            version = self._newest()
            if version == self.current.version:
                return False
            self.current = self.get(version)
        except UserError as error:
            logger.warning("the model stays %s: %s", self.current.version, error)
            return False
        logger.info("new sessions get %s", version)
        return True


def shelf(uri: str, store: str, device: str = "cpu", settings: Settings = AS_SAVED) -> Shelf:
    """The shelf of a model's URI.

    Args:
        uri: a network's file, a model folder, `models:/name/version`, or `models:/name@alias`, which may move to
            another version at any time.
        store: tracking URI of MLflow.
        device, settings: as `Model.start` takes them.

    Raises:
        UserError: when there is no such model or device.
    """
    registered = uri.startswith(("models:/", "runs:/"))

    def newest() -> str:
        if "@" in uri and registered:
            return version_uri(uri, store)
        return uri if registered else f"{absolute(uri)}{_DIGEST}{model_digest(local_path(uri))}"

    def load(version: str) -> Served:
        path, _, digest = version.partition(_DIGEST)
        if digest and model_digest(local_path(path)) != digest:
            raise UserError(f"{path}: expected the model of sha256 {digest[:12]}..., found another; put it back")
        return Served(version, load_model(path, store), device, settings)

    return Shelf(newest, load)

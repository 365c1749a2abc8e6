"""Serve a model over HTTP: whole clips, and sessions in which frames stream or a user corrects masks.

python jobs/serve.py
python jobs/serve.py --model models:/emn@champion --replicas 2 --journal s3://bucket/journal --token-file token

Open http://127.0.0.1:8000/docs for the requests. Ctrl-C or SIGTERM ends it; sessions stay in the journal, and the same
command goes on with them.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.errors import UserError
from vosforge.outputs import lasting
from vosforge.propagation.model import BUNDLED
from vosforge.serving.access import VARIABLE, Access, read_token
from vosforge.serving.limits import Limits
from vosforge.serving.models import shelf
from vosforge.settings import AS_SAVED, Settings
from vosforge.storage import check_writable
from vosforge.tracking import default_store

_ANSWERED_HERE = ("127.0.0.1", "localhost", "::1")


@dataclass
class Options:
    """Serve a model over HTTP: whole clips, and sessions in which frames stream or a user corrects masks."""

    model: str = str(BUNDLED)
    """Network file, model folder, models:/name/version, or models:/name@alias; an alias is looked at again and again,
    and new sessions get the version it points at. By default a small network that comes with vosforge."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's, with a token."""
    port: int = 8000
    """Port to listen on."""
    journal: str = "runs/serving/journal"
    """Folder or s3:// URI for what sessions were sent, from which they are brought back when a replica ends; with
    replicas on several machines, one that all of them reach."""
    token_file: Path | None = None
    """File with the token that clients have to bear; by default that of the environment variable VOSFORGE_TOKEN, else
    none is asked for."""
    replicas: int = 1
    """Processes that hold sessions; on cuda each has a GPU."""
    threads: int | None = None
    """Threads of each replica; by default the machine's cores, shared among them."""
    batch: int = 8
    """Most frames, of as many sessions, in one forward."""
    seconds_between_looks: float = 15.0
    """Between looks at where the alias points."""
    limits: tyro.conf.OmitArgPrefixes[Limits] = field(default_factory=Limits)
    settings: tyro.conf.OmitArgPrefixes[Settings] = AS_SAVED
    device: str = "cpu"
    """Where networks run, cpu or cuda."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Start the server, and wait until it is told to end."""
    console.verbosity(options.verbose)
    check(options)
    on_ray = _serve()
    token = Access(read_token(options.token_file))
    journal = lasting(options.journal, "--journal")
    check_writable(journal)
    store = default_store()
    model = options.model if "://" in options.model or ":/" in options.model else str(Path(options.model).absolute())
    if not os.environ.get("RAY_ADDRESS"):
        # Serve itself would share the port with another server.
        check_free(options.host, options.port)
    shelf(model, store, settings=options.settings)
    if token.open and options.host not in _ANSWERED_HERE:
        print(
            f"warning: {options.host} is open to everybody who reaches it; set --token-file or {VARIABLE}", flush=True
        )
    cluster.connect(options.verbose)
    console.heed_sigterm()
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.replicas)
    plan = on_ray.Plan(
        model, store, journal, options.limits, options.replicas, options.batch, threads, options.device,
        options.settings, options.seconds_between_looks,
    )  # fmt: skip
    try:
        on_ray.start(plan, token, options.host, options.port)
        print(f"serving {options.model} on http://{options.host}:{options.port}, requests at /docs", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped; open sessions are in the journal", flush=True)
        if not on_ray.stop():
            os._exit(0)


def check(options: Options) -> None:
    """Refuse numbers out of range."""
    for name in ("replicas", "batch", "seconds_between_looks"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')}: expected more than 0, found {getattr(options, name)}")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads: expected at least 1, found {options.threads}")
    if not 0 < options.port < 65536:
        raise UserError(f"--port: expected 1 to 65535, found {options.port}")


def check_free(host: str, port: int) -> None:
    """Refuse an address of which this machine is not, or a port on which something listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error


def _serve() -> ModuleType:
    """The Ray Serve application, which takes more packages than the rest."""
    try:
        from vosforge.serving import on_ray
    except ImportError as error:
        raise UserError(f"serving needs Ray Serve ({error}); run: pip install -e '.[serve]' in the checkout") from error
    return on_ray


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))

"""What a run here would find: versions, devices, ports, disk, network, data sets."""

import os
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxdist import run_folder
from jaxdist.data import preparing, tfds

# Where most data sets of TFDS come from.
HOST = "storage.googleapis.com"
SECONDS = 3.0
VARIABLES = (
    "JAX_PLATFORMS",
    "JAX_NUM_CPU_DEVICES",
    "NPROC",
    "XLA_FLAGS",
    "JAX_COORDINATOR_ADDRESS",
)


def examine(workdir: Path) -> Iterator[tuple[str, str]]:
    """What is found, as rows of a name and a value; changes nothing.

    Args:
      workdir: a folder that a run is to have, or has.
    """
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from run_folder.versions().items()
    yield from _devices()
    yield "cpu cores", str(os.cpu_count())
    yield from ((name, os.environ[name]) for name in VARIABLES if name in os.environ)
    yield "port", _port()
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    writable = "" if os.access(existing, os.W_OK) else ", not writable"
    yield "free disk", f"{_size(shutil.disk_usage(existing).free)} in {existing}{writable}"
    yield "run folder", _run(workdir)
    answers = preparing.reachable(HOST, seconds=SECONDS)
    yield "network", f"{HOST} {'answers' if answers else 'does not answer'}"
    yield "data sets", ", ".join(tfds.prepared()) or "none prepared"
    yield "  in", str(tfds.directory())


def _devices() -> Iterator[tuple[str, str]]:
    try:
        first = jax.devices()[0]
    except RuntimeError as error:
        yield "devices", f"none: {' '.join(str(error).split())}"
        return
    yield "devices", f"{jax.device_count()} x {first.device_kind}"
    yield "backend", first.platform
    yield "processes", str(jax.process_count())
    if memory := first.memory_stats():
        yield "memory of a device", _size(memory.get("bytes_limit", 0))


def _port() -> str:
    """Whether processes on this host could find each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return f"loopback can be listened on (tried {server.getsockname()[1]})"
    except OSError as error:
        return f"loopback can not be listened on: {error.strerror}"


def _run(folder: Path) -> str:
    try:
        return f"{folder} is a run of {run_folder.read_record(folder)['config']}"
    except ValueError:
        return f"{folder} holds no run"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"

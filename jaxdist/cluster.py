"""Joining the other processes of a job, and agreeing with them through its coordinator.

The coordinator's key-value store and barriers work before there is a device, on the host, with a time
limit each. Its client is not public in JAX; `client` is the only place that names it.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from jaxdist import connections, fail_fast, rank
from jaxdist.errors import Refused

LOOPBACK = ("127.", "localhost", "[::1]")
SECONDS = 600.0  # how long others are waited for
START_SECONDS, CURE_SECONDS = 300, 30
CURE = "start the same command once for each process (on TPU VMs: --worker=all)"
START = "JAXDIST_START_SECONDS"
# How often a name was used: all processes use the same names in the same order.
_used: Counter[str] = Counter()


def join() -> bool:
    """Joins the processes of a TPU slice, a SLURM, Open MPI or Kubernetes job; alone it does nothing.

    JAX finds out where it runs; elsewhere `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` say it, or the address, and any MPI the two others. Call it before anything else of
    JAX. The only process of a host takes all GPUs that it sees. A coordinator on the loopback address
    listens there only. `JAXDIST_START_SECONDS` bounds the wait for the others (300).

    Returns:
      Whether there are other processes.

    Raises:
      Refused: one of these variables is no number, the coordinator's port is in use, or MPI has started
        several processes and nothing says where the first one is.

    If not all are there in that time the process ends, with a line that says how many are: JAX would
    abort it.
    """
    address = os.environ.get(rank.ADDRESS, "")
    count, mine = rank.given()
    seconds = rank.number(START) or START_SECONDS
    if mine == 0 and address.startswith(LOOPBACK):
        _check_free(address)
    try:
        with _ending_after(seconds):
            jax.distributed.initialize(
                # JAX itself reads the address from the environment, but not these two.
                num_processes=count,
                process_id=mine,
                local_device_ids=rank.local_devices(),
                coordinator_bind_address=address if address.startswith(LOOPBACK) else None,
                initialization_timeout=seconds + 60,
                shutdown_timeout_seconds=60,
            )
    except (ValueError, RuntimeError) as error:
        # Nobody to join; or this process has used JAX already, and so is on its own.
        nobody, used = "coordinator_address should be defined", "must be called before any JAX"
        if nobody in str(error) and (cure := rank.unjoined()):
            raise Refused(cure) from None
        if nobody not in str(error) and used not in str(error):
            raise
        return False
    # Not jax.process_count(): devices are looked for together, and that hangs where counts differ.
    return distributed.global_state.num_processes > 1


def client() -> Any:
    """The coordinator's client.

    Raises:
      RuntimeError: this process has joined nobody.
    """
    found = distributed.global_state.client
    if found is None:
        raise RuntimeError("there is no coordinator: cluster.join() has joined nobody")
    return found


def place() -> tuple[int, int]:
    """The number of this process and how many there are, without looking for devices."""
    state = distributed.global_state
    return (0, 1) if state.client is None else (state.process_id, state.num_processes)


def expected() -> tuple[int, int]:
    """As `place`; before this process joins, what the environment says of it."""
    return rank.expected() if distributed.global_state.client is None else place()


def joining() -> str:
    """How many have joined so far, as the connections of this host show it; empty: it can not be seen."""
    mine, count = place()
    _, _, port = (distributed.global_state.coordinator_address or "").rpartition(":")
    if count == 1 or not port.isdecimal():
        return ""
    if mine == 0:
        there = connections.joined(int(port))
        return f"{len(there)} of {count} processes connected ({', '.join(sorted(there)) or 'none'})"
    if connections.reaches(int(port)):
        return "connected to process 0, which waits for others"
    return f"nobody answers at {distributed.global_state.coordinator_address}, where process 0 should be"


@contextlib.contextmanager
def _ending_after(seconds: int) -> Iterator[None]:
    """Ends the process if this takes longer; after a while it says how to be more than one."""
    begun = time.monotonic()
    over = threading.Event()

    def look() -> None:
        for limit in sorted({min(CURE_SECONDS, seconds), seconds}):
            if over.wait(begun + limit - time.monotonic()):
                return
            mine = place()[0]
            came = joining() or "nobody has come"
            print(f"[process {mine}] {came} in {limit} s: {CURE}", file=sys.stderr, flush=True)
        # Where somebody starts all again it may come in the next life.
        again = fail_fast.supervised() or fail_fast.restarted()
        os._exit(fail_fast.GO_ON if again else fail_fast.REFUSAL)

    thread = threading.Thread(target=look, name="joining", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def once(name: str) -> str:
    """A name for the coordinator that was not used before; all ask for the same names in their order."""
    _used[name] += 1
    return f"jaxdist/{name}/{_used[name]}"


def everyone(name: str, value: Any, *, seconds: float = SECONDS) -> list[Any]:
    """What every process has to say, on every process: one JSON value each, in their order.

    Process 0 gathers and publishes, so all see the same, even where they disagree on how many they are.

    Args:
      name: of what; all call with the same names in the same order.
      value: what this process says.
      seconds: how long to wait.

    Returns:
      One value for each process; None for one that said nothing in that time.
    """
    mine, count = place()
    if count == 1:
        return [value]
    key, store = once(name), client()
    if mine:
        store.key_value_set(f"{key}/{mine}", json.dumps(value))
        return json.loads(store.blocking_key_value_get(f"{key}/all", int(1000 * (seconds + 30))))
    end = time.monotonic() + seconds
    said = [value, *[_said(f"{key}/{i}", end) for i in range(1, count)]]
    store.key_value_set(f"{key}/all", json.dumps(said))
    return said


def barrier(name: str, step: int, *, seconds: float = SECONDS) -> None:
    """Returns when every process is here, at this step.

    Raises:
      RuntimeError: from JAX, if one is not, in that time.
    """
    if place()[1] > 1:
        client().wait_at_barrier(once(f"{name} step {step}"), int(1000 * seconds))


def _said(key: str, end: float) -> Any:
    left = max(end - time.monotonic(), 0.001)
    try:
        return json.loads(client().blocking_key_value_get(key, int(1000 * left) + 1))
    except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None


def _check_free(address: str) -> None:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        raise Refused(
            f"{rank.ADDRESS}={address}: {error.strerror}: port {port} is not free; write another port"
        ) from None
    except ValueError:
        raise Refused(f"{rank.ADDRESS}={address!r}: expected host:port") from None

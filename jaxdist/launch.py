"""Several processes of one run on this host, started together, ended together, started again.

The supervisor never touches JAX. As with torchrun any bad exit ends all; a new life has a new port and
waits longer each time, and after `max_restarts` failures without a new checkpoint it gives up. No child
outlives it, however it ends: the kernel kills them.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import fail_fast, fault_plan, file_lock, frozen, hangup, manifest, peers, watchdog
from jaxdist.errors import Refused

EVENTS = "supervisor.jsonl"
LOCK = "supervisor.lock"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
LOOK_SECONDS = 0.05
STACKS_SECONDS = 0.5  # to write them down
# After a refusal the others say the same; after anything else they would only say that somebody left.
REFUSAL_SECONDS = 5.0
PR_SET_PDEATHSIG = 1


class End(NamedTuple):
    """How one life of a job ended.

    Attributes:
      code: the exit code for the user; 0: all processes are done.
      cause: in a few words, who and why.
      again: whether another life may end otherwise.
      told: what to show last: a traceback, each line tagged with its process.
      same: what two failures have in common that would fail for ever.
      stopped: whether the processes were told to stop, and steps are left.
    """

    code: int
    cause: str
    again: bool
    told: str = ""
    same: Any = None
    stopped: bool = False


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    processes: int = 2,
    devices_per_process: int = 1,
    max_restarts: int = 3,
) -> int:
    """Runs `jaxdist COMMAND` in several processes until it is done.

    Args:
      command: `["train", CONFIG, ...]`.
      folder: the run's.
      processes: how many.
      devices_per_process: simulated CPU devices of each.
      max_restarts: so many failures in a row without a new checkpoint are forgiven.

    Returns:
      The exit code: 0 done or stopped and saved, else that of the process that failed first.

    Raises:
      Refused: numbers that are no counts, a folder that has another supervisor.
    """
    for name, value in (("processes", processes), ("devices-per-process", devices_per_process)):
        if value < 1:
            raise Refused(f"--{name} {value}: expected a positive integer; write --{name} 2")
    if max_restarts < 0:
        raise Refused(f"--max-restarts {max_restarts}: expected 0 or more; write 3")
    with _alone(folder) as event, _signals() as came:
        failures, restarts, saved, before = 0, 0, newest(folder), None
        while True:
            event("start", restarts=restarts, step=saved)
            end = _life(command, folder, processes, devices_per_process, restarts, came, event)
            step = newest(folder)
            stopped = came or end.stopped
            word = "stopped" if stopped else "failed" if end.code else "done"
            event(word, cause=end.cause, step=step, restarts=restarts)
            failures = 1 if step > saved else failures + 1
            why = ""
            if end.same is not None and end.same == before:
                why = "the same error at the same step twice"
            elif failures > max_restarts:
                why = (
                    f"{failures} failures without a new checkpoint (--max-restarts {max_restarts})"
                )
            if why or end.code == 0 or came or not end.again:
                # The traceback comes last, where it is looked for.
                _say(why and f"jaxdist launch: {end.cause}; given up: {why}", end.told)
                return end.code
            saved, before = step, end.same
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
            restarts += 1
            _say(
                end.told,
                f"jaxdist launch: {end.cause}; restart {restarts} from "
                f"{f'step {step}' if step >= 0 else 'the beginning'} in {pause:.1f} s",
            )
            _rest(pause, came)
            if came:
                return 128 + came[0]


def _rest(seconds: float, came: list[int]) -> None:
    """Waits, unless a signal comes; not in silence."""
    said = now = time.monotonic()
    until = now + seconds
    while (now := time.monotonic()) < until and not came:
        if now - said >= watchdog.QUIET_SECONDS:
            said = now
            _say(f"jaxdist launch: {until - now:.0f} s to the restart")
        time.sleep(LOOK_SECONDS)


def _life(
    command: Sequence[str],
    folder: Path,
    processes: int,
    devices: int,
    life: int,
    came: list[int],
    event: Callable[..., None],
) -> End:
    """Starts all processes, waits for all or for the first that fails, and leaves none."""
    with contextlib.suppress(OSError):
        (folder / fail_fast.ERROR).unlink()
    with tempfile.TemporaryDirectory(prefix="jaxdist-") as errors, _port() as port:
        children = []
        try:
            for process in range(processes):
                given = _environment(process, processes, devices, life, port, errors)
                children.append(_start(command, given))
            return _wait(children, folder, Path(errors), came, event)
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _wait(
    children: list[subprocess.Popen[bytes]],
    folder: Path,
    errors: Path,
    came: list[int],
    event: Callable[..., None],
) -> End:
    passed = 0
    # Who waits less for a phase waits less for a sign of life as well.
    patience = min(watchdog.FROZEN_SECONDS, watchdog.patience_seconds())
    look = frozen.watcher(folder, [child.pid for child in children], seconds=patience)
    while True:
        codes = [child.poll() for child in children]
        if len(came) > passed:
            if passed:
                return End(128 + came[-1], "stopped at once", False)
            passed = len(came)
            for child in children:
                # JAX hears this one, and all of them stop at the same step.
                child.send_signal(signal.SIGTERM)
            name = signal.Signals(came[-1]).name
            event("stopping", cause=name)
            _say(f"jaxdist launch: {name}: saving, then stopping; once more to stop at once")
        if all(code == 0 for code in codes):
            return _done(errors, came)
        if any(codes):
            return _end(children, codes, errors, came)
        if found := look():
            return _frozen(children[found.process], found)
        time.sleep(LOOK_SECONDS)


def _done(errors: Path, came: list[int]) -> End:
    """Why all processes ended well: no step is left, or somebody told them to stop."""
    try:
        step = (errors / fail_fast.STOPPED).read_text()
    except OSError:
        return End(0, "done", False)
    cause = f"stopped and saved step {step}"
    if came:
        return End(0, cause, False, stopped=True)
    # Not by us: whoever looks here should not take it for the end.
    cause += ", by a signal to one of the processes"
    told = f"jaxdist launch: {cause}; the same command goes on"
    return End(0, cause, False, told, stopped=True)


def _frozen(child: subprocess.Popen[bytes], found: frozen.Frozen) -> End:
    """Lets a frozen process show where it is, if it can: one that is stopped can not."""
    stopped = frozen.stopped(child.pid)
    if not stopped:
        child.send_signal(watchdog.STACKS)
        time.sleep(STACKS_SECONDS)
    why = "stopped by a signal" if stopped else "see the stacks above"
    where = (
        f"last seen in phase {found.phase} of step {found.step}" if found.phase else "never seen"
    )
    silent = f"no sign of life for {found.seconds:.0f} s"
    cause = f"process {found.process} is frozen, {where}: {silent}, {why}"
    return End(fail_fast.GO_ON, cause, True)


def _end(
    children: list[subprocess.Popen[bytes]],
    codes: list[int | None],
    errors: Path,
    came: list[int],
) -> End:
    """Why the first process failed."""
    told = sorted(map(_read, errors.glob("*.json")), key=lambda error: error["time"])
    # Abort is how JAX ends a process when another one is lost: it is a cause only if there is no other.
    bad = sorted(
        [(process, code) for process, code in enumerate(codes) if code],
        key=lambda one: one[1] == -signal.SIGABRT,
    )
    killed = [(p, -c) for p, c in bad if c < 0 and -c != signal.SIGABRT]
    if came and killed:
        return End(128 + came[0], "stopped before it could save", False)
    if killed:
        process, number = killed[0]
        return End(128 + number, f"process {process} died of {signal.Signals(number).name}", True)
    # Whatever is told after the first error may follow from it.
    first = told[0]["code"] if told else bad[0][1]
    # Python ends with 1 after errors that nobody could tell.
    if first in fail_fast.REFUSED and (told or first != fail_fast.NOT_FINITE):
        until = time.monotonic() + REFUSAL_SECONDS
        while time.monotonic() < until and any(child.poll() is None for child in children):
            time.sleep(LOOK_SECONDS)
        return End(first, "refused", False)
    if told:
        error = told[0]
        where = f"{error['type']} in phase {error['phase']} of step {error['step']}"
        cause = f"process {error['process']}: {where}"
        same = error["type"], error["message"], error["phase"], error["step"]
        return End(error["code"], cause, True, fail_fast.tagged(error), same)
    process, code = bad[0]
    if code < 0:
        return End(128 - code, f"process {process} died of {signal.Signals(-code).name}", True)
    stuck = " (stuck, see the stacks above)" if code == fail_fast.GO_ON else ""
    return End(code, f"process {process} ended with code {code}{stuck}", True)


def _read(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text("utf-8"))
    unknown = {"type": "an error", "message": "", "phase": "?", "step": 0, "traceback": "(lost)"}
    return {"process": int(file.stem), "time": time.time(), "code": fail_fast.FAILED, **unknown}


def _environment(
    process: int, processes: int, devices: int, restarts: int, port: int, errors: str
) -> dict[str, str]:
    own = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
        "JAX_NUM_CPU_DEVICES": str(devices),
        fault_plan.RESTARTS: str(restarts),
        fail_fast.ERRORS: errors,
    }
    # Two threads for each simulated device, or XLA's pool on CPU may hang; see conftest.py.
    usual = {"JAX_PLATFORMS": "cpu", "NPROC": str(max(2 * devices, 2))}
    return {**usual, **os.environ, **own}


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def bound() -> None:
        # Before exec: the kernel kills the child when its supervisor ends, even by SIGKILL.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(fail_fast.FAILED)

    # A session of its own: Ctrl-C reaches the supervisor alone, which passes it on once.
    return subprocess.Popen(
        [sys.executable, "-m", "jaxdist", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        preexec_fn=bound,
        start_new_session=True,
    )


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """A port of the loopback address that nobody is given before the coordinator listens there.

    It is bound here and not listened on: another program that asks the kernel for any port never gets
    it, and the coordinator, which shares ports as gRPC does, does.
    """
    with socket.socket() as held:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            held.setsockopt(socket.SOL_SOCKET, option, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def newest(folder: Path) -> int:
    """The newest checkpoint that was saved to its end; -1: none."""
    return max(manifest.saved(folder / "checkpoints"), default=-1)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Callable[..., None]]:
    """Holds the folder for this supervisor; yields what writes its events there."""
    status = folder / peers.STATUS
    with file_lock.held(status / LOCK, of=folder, used="has a supervisor:"):
        peers.forget(folder)

        def event(name: str, **more: Any) -> None:
            line = {"time": time.time(), "event": name, "pid": os.getpid(), **more}
            with contextlib.suppress(OSError), (status / EVENTS).open("a") as events:
                events.write(json.dumps(line) + "\n")

        yield event


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal are noted in the list, and do not end the supervisor."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if hangup.counts(number, len(came)):
            came.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM, *([hangup.NUMBER] if hangup.heeded() else [])]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(*texts: str) -> None:
    for text in texts:
        if text:
            hangup.say(text, sys.stderr)

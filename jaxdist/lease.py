"""The lock of a folder behind a URL, where no kernel holds one: an object that its writer keeps renewing.

Nobody's clock is compared with another's. Whoever finds the object looks at it: if it changes, its writer
lives; if it stays as it is for `STALE_SECONDS`, or its process is known to be gone from this very machine,
it is taken over. A writer that was taken for dead finds out before it commits its next step. Between that
look and the commit there is a moment in which two may write: what they commit is verified all the same.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdist import store
from jaxdist.errors import NoRoom, Refused

LOCK = "lock"
RENEW_SECONDS, STALE_SECONDS, SETTLE_SECONDS = 5.0, 30.0, 1.0


@contextlib.contextmanager
def held(
    folder: Path,
    *,
    say: Callable[[str], None] = print,
    now: Callable[[], tuple[str, int]] = lambda: ("", 0),
) -> Iterator[Callable[[], None]]:
    """Inside, the folder is this process's.

    Args:
      folder: behind a URL; made if need be.
      say: what to do with a line that says what is waited for.
      now: `now()` -> the phase and the step, which the lock also tells.

    Yields:
      `check()`: raises an OSError if another process has taken the folder over.

    Raises:
      Refused: another process holds it, or the store can not be written to.
    """
    file, token = folder / LOCK, secrets.token_hex(8)
    own = {"who": f"process {os.getpid()} on {socket.gethostname()}", "token": token}
    own |= {"pid": os.getpid(), "machine": _machine()}

    def text(beat: int) -> str:
        phase, step = now()
        return json.dumps({**own, "beat": beat, "phase": phase, "step": step, "time": time.time()})

    def check() -> None:
        if (found := _read(file)).get("token") != token:
            who = found.get("who", "somebody who removed its lock")
            raise NoRoom(f"{folder} was taken over by {who}: this run stops, and commits nothing")

    def renew() -> None:
        beat = 0
        while not over.wait(RENEW_SECONDS):
            beat += 1
            # A store that does not answer now may answer the next time; a commit looks for itself.
            with contextlib.suppress(OSError):
                if _read(file).get("token") != token:
                    return
                store.write(file, text(beat))

    try:
        store.make(folder)
        # Looked for first: not every store creates exclusively.
        while _read(file) or not store.create(file, text(0)):
            if _stale(file, say):
                store.write(file, text(0))
                time.sleep(SETTLE_SECONDS)
                if (found := _read(file)).get("token") != token:
                    raise _in_use(folder, found)
                break
            if found := _read(file):
                raise _in_use(folder, found)
    except OSError as error:
        raise Refused(f"--workdir {folder}: {error.strerror or error}; choose another") from None
    over = threading.Event()
    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _read(file).get("token") == token:
                file.unlink()


def look(folder: Path) -> dict[str, Any]:
    """What the writer of a folder last said of itself: who, phase, step, time; empty: nobody writes."""
    return _read(folder / LOCK)


def _in_use(folder: Path, found: dict[str, Any]) -> Refused:
    who = found.get("who", "another process")
    return Refused(
        f"--workdir {folder} is being written to by {who}: wait for it, or choose another"
    )


def _stale(file: Path, say: Callable[[str], None]) -> bool:
    """Whether its writer is gone; looks at it for as long as that takes."""
    before = _read(file)
    if before.get("machine") == _machine() and not _runs(before.get("pid")):
        return True
    say(f"looking for up to {STALE_SECONDS:.0f} s whether {before.get('who', '?')} still writes")
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(RENEW_SECONDS, STALE_SECONDS) / 5)
        if _read(file) != before:
            return False
    return True


def _read(file: Path) -> dict[str, Any]:
    """What a lock says; empty: there is none, or it says nothing."""
    try:
        found = json.loads(store.read(file)[:10_000])
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """What is the same only where process numbers mean the same; differs each time if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)


def _runs(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, ValueError):
        return True
    return True

"""The folder of one run: who writes to it, what it was made with, and one line for every step.

experiment.json   the keywords, the config's text, what it imports, versions, devices; signed, see
                  `jaxdist/provenance.py`
config.py.txt     the config's text, to be read; it is never run from here
metrics.jsonl     one JSON object a line: step, loss, bytes_sent, seconds (on the wall); evaluations
                  add more, a clock simulated_seconds
checkpoints/      the newest two, and their checksums; what adds up over the lines is in them too
events/           for TensorBoard, where tensorboardX is installed
run.png           loss and accuracy, drawn at the end
lock              who writes to it now; behind a URL see `jaxdist/lease.py`
status/           what each process is doing, and what their supervisor did
error.json        the error that ended the last try; gone when a later one begins

Behind a URL there are no events/, status/ and error.json, metrics.jsonl is as new as the newest save, and
the lock also says what process 0 is doing.
"""

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxdist import cluster, fail_fast, file_lock, lease, manifest, peers, provenance, store
from jaxdist.errors import Refused
from jaxdist.manifest import JSON_BYTES

LOCK = lease.LOCK
RECORD = "experiment.json"
SOURCE = "config.py.txt"
KEPT = 2  # checkpoints; while the next one is written there are three
PACKAGES = ("jaxdist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def locked(
    folder: Path,
    *,
    say: Callable[[str], None] = print,
    now: Callable[[], tuple[str, int]] = lambda: ("", 0),
) -> Iterator[Callable[[], None]]:
    """Holds the folder for this process; the kernel lets go of it however the process ends.

    Of several processes of one job the first one holds it for all. On a disk it is held as
    `jaxdist/file_lock.py` says, behind a URL as `jaxdist/lease.py` says, which is weaker. A folder that is
    refused keeps no lock of ours.

    Args:
      folder: made if need be.
      say: what to do with a line that says what is waited for.
      now: `now()` -> the phase and the step, which the lock behind a URL tells to `jaxdist status`.

    Yields:
      `check()`: raises an OSError if the folder is no longer held; call it before each commit.

    Raises:
      Refused: another process holds it, or it is no folder that can be written to, or not all
        processes of the job see it. Then all of them raise: none waits for the others.
    """
    with contextlib.ExitStack() as held:
        refused, check = None, _nothing
        if cluster.place()[0] == 0:
            try:
                lock = _lock(folder, say, now)
                check = held.enter_context(lock)
            except Refused as error:
                refused = error
        _agree("lock", refused)
        _check_shared(folder)
        yield check


def _lock(
    folder: Path, say: Any, now: Any
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    if store.afar(folder):
        return lease.held(folder, say=say, now=now)
    return file_lock.held(folder / LOCK, of=folder, keeps=(folder / RECORD).exists)


def _nothing() -> None:
    """Of the first process the others hear when it ends."""


def _agree(name: str, refused: Refused | None) -> None:
    """All processes hear what the first one was refused, and raise it."""
    if cluster.place()[1] == 1 and refused:
        raise refused
    if reason := cluster.everyone(name, refused and str(refused))[0]:
        raise Refused(reason)


def _check_shared(folder: Path) -> None:
    """Refuses hosts that do not see the folder of the first process."""
    if cluster.place()[1] == 1:
        return
    sees = cluster.everyone("folder", (folder / LOCK).exists())
    if not all(sees):
        blind = ", ".join(str(process) for process, seen in enumerate(sees) if not seen)
        raise Refused(
            f"--workdir {folder} of process 0 is not seen by process {blind}: expected one folder for "
            "all hosts; write one that all of them mount"
        )


def check(
    folder: Path,
    *,
    keywords: dict[str, Any],
    source: str,
    modules: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Refuses a folder that holds something else than this very run; an empty one is welcome.

    Of several processes the first one looks for all: a later one could meet what it has written since.

    Args:
      folder: the run's.
      keywords: of its config.
      source: the text of its config.
      modules: what that imports, as of `provenance.modules`; None: they are not compared.
      say: what to do with a line that says what has changed and is no reason to refuse: comments,
        versions, modules.

    Raises:
      Refused: it holds another experiment (the difference is named) or other files.
    """
    refused = None
    if cluster.place()[0] == 0:
        try:
            if _holds(folder, keywords=keywords, source=source):
                now = {"source": source, "modules": modules, "versions": surroundings()}
                if lines := provenance.changed(read_record(folder), now):
                    say(f"since {folder} was begun: {'; '.join(lines)}")
        except Refused as error:
            refused = error
    _agree("check", refused)


def _holds(folder: Path, *, keywords: dict[str, Any], source: str) -> bool:
    """Whether the folder holds this very run; False: it is empty."""
    if not (folder / RECORD).exists():
        if others := _others(folder):
            raise Refused(
                f"--workdir {folder} holds {others[0]} and no {RECORD}: choose an empty folder"
            )
        return False
    before = read_record(folder)
    if not provenance.same_program(before["source"], source):
        raise Refused(
            f"--workdir {folder} holds a run of {before['config']}, whose text was another "
            f"({provenance.difference(before['source'], source)}): look at {SOURCE} there, or choose "
            "another folder and begin from that run: "
            f"--workdir NEW --init-from {folder}"
        )
    if changed := changes(before["keywords"], keywords):
        difference = ", ".join(
            f"{name}={then!r} there and {now!r} here" for name, (then, now) in changed.items()
        )
        raise Refused(
            f"--workdir {folder} holds another experiment ({difference}): choose another folder, and to "
            f"begin from that run: --workdir NEW --init-from {folder}"
        )
    return True


def changes(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keywords that differ, with both values as JSON gives them back: a tuple is a list then.

    >>> changes({"hidden": [32], "steps": 9}, {"hidden": (32,), "steps": 12})
    {'steps': (9, 12)}
    """
    then, now = (json.loads(json.dumps(keywords)) for keywords in (then, now))
    pairs = {name: (then.get(name), now.get(name)) for name in sorted({*then, *now})}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def _others(folder: Path) -> list[str]:
    names = [p.name for p in store.children(folder)]
    own = (LOCK, SOURCE, peers.STATUS, fail_fast.ERROR)
    # What another process is writing, or a kill left unfinished, see `replace`.
    unfinished = [f"{name}.tmp" for name in (*own, RECORD)]
    return sorted(name for name in names if name not in (*own, *unfinished))


def claim(
    folder: Path,
    *,
    config: str,
    keywords: dict[str, Any],
    source: str,
    modules: dict[str, str] | None = None,
    state: Any = (),
    init_from: Path | None = None,
) -> None:
    """Writes down what the run is made of, unless the folder holds it already.

    Raises:
      Refused: what `check` refuses (here process 0 looks alone), or the disk has no room for as many
        more checkpoints of `state` as make three, the two that are kept and the next. Nothing was written.
    """
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    if store.afar(folder):
        here, more, cure = Path(tempfile.gettempdir()), 1, "set TMPDIR"
    else:
        there = min(len(manifest.saved(folder / "checkpoints")), KEPT)
        here, more, cure = folder, KEPT + 1 - there, "choose another folder"
    free = store.free_bytes(here)
    if free is not None and free < more * needed:
        raise Refused(
            f"--workdir {here} has {free:,} bytes free, and {more} checkpoint{'s' if more > 1 else ''} more "
            f"will need {more * needed:,}: {cure}"
        )
    if jax.process_index() != 0:
        return
    (folder / fail_fast.ERROR).unlink(missing_ok=True)
    if not store.afar(folder) and not fail_fast.supervised():  # a supervisor has done it
        peers.forget(folder)
    if _holds(folder, keywords=keywords, source=source):
        return
    record = {
        "config": os.path.abspath(config),
        "keywords": keywords,
        "source": source,
        "modules": modules or {},
        "versions": surroundings(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "init_from": init_from and str(init_from),
    }
    record["signature"] = provenance.sign(record)
    replace(folder / SOURCE, source)
    replace(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What `claim` wrote.

    Raises:
      Refused: the folder holds no run.
    """
    file = folder / RECORD
    try:
        if (size := file.stat().st_size) > JSON_BYTES:
            raise Refused(f"{file} has {size} bytes, at most {JSON_BYTES} are read")
        record = json.loads(store.read(file).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise Refused(f"{folder} holds no run: expected a folder with {RECORD}") from None
    kinds = {"config": str, "source": str, "keywords": dict}
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), kind) for name, kind in kinds.items()
    ):
        raise Refused(f"{file} was not written by jaxdist")
    return record


def replace(file: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old text or the new one, and nothing between.

    Raises:
      NoRoom: it could not be written; says how much room there is. The old text is still there.
    """
    with store.told(file.parent, file.name):
        store.write(file, text)


def surroundings() -> dict[str, str]:
    """The versions of Python and of `versions`."""
    return {"python": platform.python_version(), **versions()}


def versions() -> dict[str, str]:
    """The installed versions of what a result may depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found

"""Before the first step all processes compare what they are: one table, and nobody starts on a mismatch."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist import cluster, run_folder
from jaxdist.algorithms.base import method_of
from jaxdist.errors import Refused

Facts = dict[str, Any]


def shake(name: str, facts: Callable[[], Facts], *, seconds: float = cluster.SECONDS) -> None:
    """Compares facts with those of all other processes; where there are none, nothing is done.

    Args:
      name: of what is compared.
      facts: `facts()` -> names and values, JSON.
      seconds: how long to wait for the others.

    Raises:
      Refused: they differ, or a process is missing. Every process has printed the same table.
    """
    mine, count = cluster.place()
    if count == 1:
        return
    said = cluster.everyone(f"handshake {name}", facts(), seconds=seconds)
    rows = differences(said)
    lost = [i for i, facts in enumerate(said) if facts is None]
    if not rows and not lost:
        return
    print(table(said, rows), file=sys.stderr, flush=True)
    if lost:
        raise Refused(
            f"process {', '.join(map(str, lost))} of {len(said)} said nothing in {seconds:.0f} s: start "
            "the same command once for each process (on TPU VMs: --worker=all)"
        )
    raise Refused(
        f"process {mine}: the processes differ in {', '.join(rows)} (table above): start all of them "
        "from the same files, with the same command"
    )


def differences(said: list[Facts | None]) -> list[str]:
    """The names of the facts that are not the same everywhere.

    >>> differences([{"jax": "1", "data": "a"}, {"jax": "1", "data": "b"}])
    ['data']
    """
    present = [facts for facts in said if facts is not None]
    names = dict.fromkeys(name for facts in present for name in facts)
    values = {name: {json.dumps(facts.get(name)) for facts in present} for name in names}
    return [name for name in names if len(values[name]) > 1]


def table(said: list[Facts | None], rows: list[str]) -> str:
    """What each process says of the facts that differ."""
    lines = [f"{'':12}" + "".join(f"{name:28}" for name in rows)]
    for process, facts in enumerate(said):
        words = ["missing"] if facts is None else [str(facts.get(name)) for name in rows]
        lines.append(f"process {process:<4}" + "".join(f"{word:28}" for word in words))
    return "\n".join(line.rstrip() for line in lines)


def surroundings() -> Facts:
    """What can be compared before there are devices: how many there are, and of which versions."""
    versions = run_folder.versions()
    # A test has no second installation: it overrides one.
    if os.environ.get("JAXDIST_TEST_FAULTS") == "1":
        versions |= json.loads(os.environ.get("JAXDIST_TEST_VERSIONS", "{}"))
    return {"processes": cluster.place()[1], **versions}


def of_run(config: Any) -> Facts:
    """What must be the same of an `experiment.Config`."""
    made = config.experiment
    return {
        "config": _short(config.source.encode()),
        "modules": json.dumps(config.modules),
        "keywords": json.dumps(config.keywords, sort_keys=True, default=str),
        "method": method_of(made.algorithm),
        "data": fingerprint(made.task.stream.batch(0)),
        "devices": jax.local_device_count(),
    }


def fingerprint(batch: Any) -> str:
    """A few digits that another batch does not have.

    >>> fingerprint({"x": np.zeros(3)}) == fingerprint({"x": np.zeros(3)})
    True
    >>> fingerprint({"x": np.zeros(3)}) == fingerprint({"x": np.zeros((3, 1))})
    False
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(batch)
    parts = [
        f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).data
        for path, x in ((path, np.asarray(leaf)) for path, leaf in paths)
    ]
    return _short(b"".join(parts))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]

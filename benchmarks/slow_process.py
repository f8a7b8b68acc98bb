"""What a process that stops now and then costs each method: steps a second, beside those without it.

    python benchmarks/slow_process.py                     # five methods, four processes, about 8 minutes
    python benchmarks/slow_process.py --methods gossip_ring --rounds 1 --seconds 5

One job of each method runs under `jaxdist launch`, and in turn, for some seconds each: nobody is
disturbed (calm); process 1 is stopped (SIGSTOP) for 100 of every 200 milliseconds (half); every process is
stopped, on its own, for 200 milliseconds after a random time of 800 on average (now_and_then). A step
computes next to nothing and takes a batch that is there after 20 milliseconds, as if an accelerator were at
work: more processes than cores do not slow each other down. The file is its own config.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optax

import jaxdist as jd
from jaxdist import peers

PERIOD = 50
METHODS: Mapping[str, Callable[[int], jd.Algorithm]] = {
    "all_reduce": lambda workers: jd.all_reduce(optax.sgd(0.05)),
    "gossip_ring": lambda workers: jd.gossip(optax.sgd(0.05), jd.topology.ring(workers)),
    "gossip_one_peer": lambda workers: jd.gossip(
        optax.sgd(0.05), jd.topology.one_peer_exponential(workers)
    ),
    "local_sgd": lambda workers: jd.local_sgd(optax.sgd(0.05), period=PERIOD),
    "diloco": lambda workers: jd.diloco(optax.sgd(0.05), optax.sgd(0.7), period=PERIOD),
}


@dataclasses.dataclass(frozen=True)
class Slow:
    """A stream whose batches take their time."""

    stream: Any
    seconds: float

    @property
    def workers(self) -> int:
        """How many workers it feeds."""
        return self.stream.workers

    def batch(self, step: int) -> Any:
        """The batch of a step."""
        time.sleep(self.seconds)
        return self.stream.batch(step)


def experiment(
    *,
    method: str = "gossip_ring",
    workers: int = 4,
    milliseconds: float = 20.0,
    report_every: int = 0,
) -> jd.Experiment:
    """Digits by one of five methods, for ever."""
    task = jd.tasks.digits(workers, batch_size=8)
    slow = task._replace(stream=Slow(task.stream, milliseconds / 1000))
    return jd.Experiment(
        algorithm=METHODS[method](workers),
        task=slow,
        steps=10**9,
        workers=workers,
        save_every=10**9,
        evaluate_every=10**9,
        report_every=report_every or None,
    )


def step_of(folder: Path) -> int:
    """Where the last of the processes is; -1: they have not begun."""
    steps = [one["step"] for one in peers.read(folder) if one["phase"] in ("step", "data")]
    return min(steps, default=-1)


def signalled(pid: int, over: threading.Event, pauses: Iterator[tuple[float, float]]) -> None:
    """Stops a process for a while, lets it go on for a while, until it is over."""
    for stopped, going in pauses:
        if over.wait(going):
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            over.wait(stopped)
        finally:
            os.kill(pid, signal.SIGCONT)


def rate(
    folder: Path, pauses: Mapping[int, Iterator[tuple[float, float]]], seconds: float
) -> float:
    """Steps a second while some processes are stopped now and then."""
    pids = {one["process"]: one["pid"] for one in peers.read(folder)}
    over = threading.Event()
    threads = [
        threading.Thread(target=signalled, args=(pids[process], over, of_process))
        for process, of_process in pauses.items()
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)  # what was there before has gone
    began, first = time.monotonic(), step_of(folder)
    time.sleep(seconds)
    lasted, last = time.monotonic() - began, step_of(folder)
    over.set()
    for thread in threads:
        thread.join()
    time.sleep(1.0)
    return (last - first) / lasted


def measured(options: argparse.Namespace, method: str, folder: Path) -> dict[str, Any]:
    """One method, calm and disturbed in turn."""
    draw = random.Random(0)
    command = [sys.executable, "-m", "jaxdist", "launch", "--processes", str(options.processes)]
    command += ["--", "train", __file__, "--workdir", str(folder), "--method", method]
    command += ["--workers", str(options.processes), "--milliseconds", str(options.milliseconds)]
    command += ["--report-every", str(options.report_every)]
    root = str(Path(jd.__file__).parents[1])
    log = folder.with_suffix(".log")
    with log.open("ab") as said:
        job = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": root}
        )
    now_and_then = {
        process: ((0.2, draw.expovariate(1 / 0.8)) for _ in itertools.count())
        for process in range(options.processes)
    }
    kinds: dict[str, Mapping[int, Iterator[tuple[float, float]]]] = {
        "calm": {},
        "half": {1: itertools.repeat((0.1, 0.1))},
        "now_and_then": now_and_then,
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        while step_of(folder) < 50:
            if job.poll() is not None:
                raise SystemExit(f"the job of {method} has ended: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        for _ in range(options.rounds):
            for kind, pauses in kinds.items():
                rates[kind].append(rate(folder, pauses, options.seconds))
    finally:
        job.send_signal(signal.SIGINT)
        job.wait()
    middle = {kind: statistics.median(found) for kind, found in rates.items()}
    return {
        "method": method,
        "steps_per_second": {kind: round(found, 2) for kind, found in middle.items()},
        "kept": {
            kind: round(found / middle["calm"], 3)
            for kind, found in middle.items()
            if kind != "calm"
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, measures each method, prints one JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="until a batch is there")
    parser.add_argument("--report-every", type=int, default=0, help="0: as a run does by itself")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one measurement (10)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each (2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jaxdist-slow-") as room:
        for method in options.methods:
            print(json.dumps(measured(options, method, Path(room, method))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

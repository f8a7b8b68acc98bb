"""An experiment as one frozen value, and reading it from a config file and a command line."""

import contextlib
import functools
import io
import math
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from jax.sharding import Mesh

from jaxdist import feed, provenance, run_folder, store
from jaxdist.algorithms.base import Algorithm, check_period
from jaxdist.clock import Clock
from jaxdist.errors import Refused
from jaxdist.executor import Trainer, execute
from jaxdist.network import Network
from jaxdist.tasks.base import Task

# As a rule so many steps pass between two reports, and never more than that.
REPORT_STEPS, MOST_REPORT_STEPS = 10, 100


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that one run needs, as the real objects.

    Args:
      algorithm: how the workers agree.
      task: what they learn, from what: data, model, loss and accuracy.
      steps: how many steps to train.
      workers: how many workers.
      seed: of the parameters and of every key in a step.
      evaluate_every: steps between two evaluations; there is one at the end besides.
      save_every: steps between two checkpoints; there is one at the end besides.
      report_every: steps between two times at which losses and whatever else the workers say are
        gathered, for all steps since the last time by one message, recorded and looked at for what is
        not finite. In between nothing is sent for it: a process waits only for those its method
        makes it wait for. None: 10, or up to 100 for a method that meets less often.
      resident: keep all examples on every device, where a step takes its own from; the batches are the
        same bit for bit. The stream must be a `jd.data.Stream` whose examples fit.
      reproducible: fix the order of every sum over workers: the same run bit for bit on any number of
        processes. Costs a gather in place of each reduction.
      clock: how long gradients take, for `simulated_seconds` in the metrics of a synchronous method.
      network: what messages cost in simulated seconds; needs a clock.
      overlap: compile each kind of step as a whole, so that an accelerator hides messages of which only
        some steps send any: see `jd.execute`.

    Raises:
      Refused: numbers that are no counts, a stream for another number of workers.

    Example:
      >>> import jaxdist as jd, optax
      >>> experiment = jd.Experiment(
      ...     algorithm=jd.all_reduce(optax.sgd(0.1)), task=jd.tasks.digits(4), steps=100, workers=4
      ... )
    """

    algorithm: Algorithm
    task: Task
    steps: int
    workers: int
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 200
    report_every: int | None = None
    resident: bool = False
    reproducible: bool = False
    clock: Clock | None = None
    network: Network | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "workers", "evaluate_every", "save_every"):
            check_period(name, getattr(self, name))
        if self.report_every is not None:
            check_period("report_every", self.report_every)
        if self.task.stream.workers != self.workers:
            raise Refused(
                f"the stream feeds {self.task.stream.workers} workers and workers={self.workers}: "
                f"expected the same; write split.iid(labels, {self.workers}, seed=0)"
            )
        if self.resident:
            feed.check_resident(self.task.stream)


def trainer_of(experiment: Experiment, *, mesh: Mesh | None = None) -> Trainer:
    """What runs an experiment: to train it, to read its checkpoints, to look at its step.

    Its metrics are those of each worker, for `step_metrics.lines`.

    Args:
      experiment: which.
      mesh: the devices; None: as many of all devices as divide its workers.
    """
    return execute(
        experiment.algorithm,
        experiment.task.loss_fn,
        workers=experiment.workers,
        mesh=mesh,
        seed=experiment.seed,
        reproducible=experiment.reproducible,
        finite=True,
        metrics="workers",
        clock=experiment.clock,
        network=experiment.network,
        overlap=experiment.overlap,
    )


def report_every(experiment: Experiment) -> int:
    """After how many steps what the workers say is gathered: where they meet anyway, if that is known.

    Never more than between two saves, each of which gathers what there is.

    >>> import jaxdist as jd, optax
    >>> task = jd.tasks.digits(4)
    >>> local = jd.local_sgd(optax.sgd(0.1), period=8)
    >>> report_every(jd.Experiment(algorithm=local, task=task, steps=100, workers=4))
    16
    """
    waits = experiment.algorithm.waits
    period = waits.period if waits else 1
    usual = min(period * -(-REPORT_STEPS // period), MOST_REPORT_STEPS)
    return min(experiment.report_every or usual, experiment.save_every)


class Config(NamedTuple):
    """A config file that was read, called and can be written down.

    Attributes:
      experiment: what its function returned.
      keywords: every keyword of the function with its value, defaults included.
      source: the text of the file.
      path: where it is.
      modules: what it imports, as of `provenance.modules`.
    """

    experiment: Experiment
    keywords: dict[str, Any]
    source: str
    path: Path
    modules: dict[str, str]


def made_of(config: Config) -> dict[str, Any]:
    """What `run_folder.check` compares, and `run_folder.claim` writes down."""
    return {"keywords": config.keywords, "source": config.source, "modules": config.modules}


def read(
    path: str, arguments: Sequence[str] = (), *, keywords: Mapping[str, Any] | None = None
) -> Config:
    """Reads a config file, which is a program, and calls its `experiment`.

    Args:
      path: a Python file that defines `experiment(*, ...) -> Experiment` with typed keywords.
      arguments: what a command line says of these keywords: `["--workers", "16"]`.
      keywords: the values themselves, in place of a command line.

    Raises:
      Refused: no such file, no such function, a keyword it does not have, a value of another
        type, a keyword named ...learning_rate that is not more than 0 or ...momentum outside [0, 1),
        or whatever the config's own objects refuse.
    """
    file = Path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise Refused(f"{path}: no such config; there are: {', '.join(near) or 'none there'}")
    build = runpy.run_path(str(file)).get("experiment")
    if not callable(build):
        raise Refused(f"{path} defines no experiment(); write def experiment(*, workers: int = 8)")
    called: dict[str, Any] = {}

    @functools.wraps(build)
    def recorded(**given: Any) -> Any:
        called.update(given)
        return given

    if keywords is None:
        _command_line(recorded, path, arguments)
    else:
        recorded(**keywords)
    for name, value in called.items():
        if isinstance(value, float) and value != value:
            raise Refused(f"{path}: {name}={value} is no number; --help shows all options")
        _check_range(path, name, value)
    experiment = build(**called)
    if not isinstance(experiment, Experiment):
        raise Refused(f"{path}: experiment() returned {type(experiment).__name__}, no Experiment")
    source = file.read_text("utf-8")
    return Config(experiment, called, source, file, provenance.modules(file))


def _check_range(path: str, name: str, value: Any) -> None:
    """Refuses what a keyword of this name can not be; optax would take it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and name.endswith("learning_rate") and not 0 < value < math.inf:
        raise Refused(f"{path}: {name}={value}: expected more than 0; write {name}=0.1")
    if number and name.endswith("momentum") and not 0 <= value < 1:
        raise Refused(
            f"{path}: {name}={value}: expected a number from 0 up to, and not including, 1; "
            f"write {name}=0.9"
        )


def read_again(
    folder: Path, *, config: str | None = None, say: Callable[[str], None] = lambda line: None
) -> Config:
    """The config of a run, called with the run's keywords. Nothing that the folder holds is run.

    What may be run, and why, is in `jaxdist/provenance.py`.

    Args:
      folder: the run's.
      config: the file that the user names. None: the one that the record names, where this user has
        written the record and the file still holds the same program.
      say: what to do with a line that says what has changed since.

    Raises:
      Refused: the folder holds no run, its record was not written by this user, its config has changed
        or is gone, or the file lies inside the folder. Nothing was run.
    """
    record = run_folder.read_record(folder)
    path = config or record["config"]
    if not store.afar(folder) and Path(path).resolve().is_relative_to(folder.resolve()):
        raise Refused(
            f"{path} is inside {folder}, and nothing that a run's folder holds is run: look at it, copy "
            "it to another place and write --config FILE"
        )
    if config is None:
        _check_ours(folder, record)
    made = read(path, keywords=record["keywords"])
    now = {"source": made.source, "modules": made.modules, "versions": run_folder.surroundings()}
    if lines := provenance.changed(record, now):
        say(f"since {folder} was begun: {'; '.join(lines)}")
    return made


def _check_ours(folder: Path, record: dict[str, Any]) -> None:
    path, cure = record["config"], "look at it, and write --config FILE to run it"
    if not provenance.is_ours(record):
        raise Refused(
            f"{folder} was not begun by you on this machine: the config that it names, {path}, is a "
            f"program and is not run; {cure}"
        )
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError):
        raise Refused(f"the config of {folder}, {path}, is gone: write --config FILE") from None
    if not provenance.same_program(record["source"], text):
        raise Refused(
            f"{path} has changed since {folder} was made from it "
            f"({provenance.difference(record['source'], text)}); write --config {path} to run it as it is"
        )


def _command_line(build: Callable[..., Any], path: str, arguments: Sequence[str]) -> None:
    """Calls `build` with what tyro makes of the arguments; its box of an error becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            tyro.cli(build, prog=f"jaxdist train {path}", args=list(arguments))
    except SystemExit as end:
        if not end.code:
            raise
        plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[─-╿]", " ", said.getvalue()).split())
        plain = re.sub(
            r"^(Unrecognized options|Value error|Parsing error) | For full helptext.*", "", plain
        )
        raise Refused(f"{path}: {plain}; --help shows all options") from None

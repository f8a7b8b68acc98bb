"""The command line: jaxdist train, launch, status, eval, check, topology, data, doctor."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxdist import watchdog

PACKAGE = Path(__file__).parent

# JAX and all that needs it are imported where they are used, so that a mistyped command costs nothing.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0 done, 1 stopped by a value that is not finite, 2 refused, with one line that says
      why on the error stream; 130 interrupted.
    """
    try:
        parser = _parser()
        options, rest = parser.parse_known_args(arguments)
        if rest and options.command not in ("train", "check", "inspect"):
            parser.error(f"unrecognized arguments: {shlex.join(rest)}")
        return options.run(options, rest) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not (code := _code(error)):
            raise
        advice = "; unset JAX_PLATFORMS, or install the extra: tpu, cuda"
        return _say(f"{error}{advice if isinstance(error, RuntimeError) else ''}", code)


def _code(error: BaseException) -> int:
    """The exit code of what a line is enough for; 0: it needs its traceback."""
    if isinstance(error, FloatingPointError):
        return 1
    refused = isinstance(error, ValueError | TypeError) and _ours(error)
    no_backend = isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
    return 2 if refused or no_backend else 0


def _ours(error: BaseException) -> bool:
    """Whether jaxdist itself refused something; a mistake inside a config keeps its traceback."""
    if "Gloo" in str(error):
        # Another process is gone. JAX raises a ValueError, and takes its own frames away.
        return False
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def _say(error: str, code: int) -> int:
    print(f"jaxdist: {' '.join(error.split())}", file=sys.stderr)
    return code


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; jaxdist --help shows what there is")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxdist",
        description="Distributed optimisation for JAX: many workers, each with its own data, agree.",
        allow_abbrev=False,
    )
    parser.error = _refuse
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: object, summary: str, *, help: bool = True, of=commands):
        made = of.add_parser(
            name, help=summary, description=summary, allow_abbrev=False, add_help=help
        )
        made.error = _refuse
        made.set_defaults(run=run)
        return made

    one = command("train", _train, "train a config, or go on with its run", help=False)
    one.add_argument("config", help="a Python file, for example configs/digits_gossip.py")
    one.add_argument("--workdir", type=_folder, help="the run's folder (default runs/CONFIG)")
    one.add_argument("--resume", choices=("auto", "must", "never"), default="auto")
    one.add_argument(
        "--init-from", type=_folder, help="begin from another run: other workers, another method"
    )
    one = command("launch", _launch, "train in several processes on this host, and restart them")
    one.add_argument("--processes", type=int, default=2, help="how many processes (2)")
    one.add_argument("--devices-per-process", type=int, default=1, help="CPU devices of each (1)")
    one.add_argument(
        "--max-restarts", type=int, default=3, help="failures in a row without a new checkpoint (3)"
    )
    one.add_argument(
        "--on", choices=("tpu-vm", "slurm", "gke-jobset"), help="print it for another site"
    )
    one.add_argument(
        "--dry-run", action="store_true", help="print the command or the manifest only"
    )
    one.add_argument("--name", default="jaxdist", help="with --on: of the job, or of the TPU VM")
    one.add_argument("--zone", default="ZONE", help="with --on tpu-vm")
    one.add_argument("--image", default="IMAGE", help="with --on gke-jobset: of the container")
    one.add_argument("--topology", default="", help="with --on gke-jobset: of a TPU slice, as 4x4")
    one.add_argument("train", nargs=argparse.REMAINDER, help="-- train CONFIG ...")
    one = command("status", _status, "show what the processes of a run are doing")
    one.add_argument("workdir", type=_folder, help="the run's folder", metavar="WORKDIR")
    one.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    one = command("eval", _eval, "evaluate the newest checkpoint of a run")
    one.add_argument(
        "run_folder", nargs="?", type=_folder, help="the run's folder", metavar="WORKDIR"
    )
    one.add_argument("--workdir", type=_folder, help="the same")
    one = command("compare", _compare, "show runs side by side: a table and a picture")
    one.add_argument("runs", nargs="+", type=_folder, metavar="WORKDIR", help="two runs or more")
    one.add_argument("--output", type=Path, help="where to draw them (default DIR/comparison.png)")
    one.add_argument("--workdir", type=_folder, default=Path(), help="where the picture goes")
    one = command("check", _check, "build a config and check it, without training", help=False)
    one.add_argument("config", help="a Python file")
    one.add_argument("--workdir", type=_folder, help="a run's folder to check it against")
    one = command(
        "inspect", _inspect, "show what one compiled step sends, computes and needs", help=False
    )
    one.add_argument("config", help="a Python file")
    one.add_argument("--target", default="cpu:8", help="compile for cpu:8, v5e:4x4, h100:8, ...")
    one.add_argument("--json", type=Path, help="also write everything to this file")
    one = command("topology", _topology, "show who listens to whom, and how fast they agree")
    one.add_argument("name", help="for example ring")
    one.add_argument("--size", type=int, default=8, help="how many workers (default 8)")
    one.add_argument(
        "--workdir", type=_folder, default=Path(), help="where to draw it (default here)"
    )
    one.add_argument("--output", type=Path, help="the drawing (default WORKDIR/NAME_SIZE.png)")
    one = command("data", _data, "prepare data sets of TFDS, or show which are prepared")
    actions = one.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "download a data set if need be, and write it as array_record"
    one = command("prepare", _data, summary, of=actions)
    one.add_argument("name", help="for example mnist, or digits, which needs no network")
    where = "where prepared sets are (default TFDS_DATA_DIR, or ~/tensorflow_datasets)"
    one.add_argument("--data-dir", "--workdir", type=_folder, help=where)
    one = command("list", _data, "show which data sets are prepared", of=actions)
    one.add_argument("--data-dir", "--workdir", type=_folder, help=where)
    one = command("doctor", _doctor, "show versions, devices, ports, disk, network and data sets")
    one.add_argument(
        "--workdir", type=_folder, default=Path(), help="a folder to look at (default here)"
    )
    return parser


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is no path of a file system; mount it (gcsfuse), and write the path"
        )
    return Path(text)


def _row(name: str, value: object) -> None:
    print(f"{name:24}{value}")


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxdist import cluster, fail_fast

    folder = _run_of(options)
    with watchdog.watching(cluster.place) as watch:
        # JAX must join the other processes before a config makes its first array.
        if not cluster.join() and not fail_fast.supervised():
            return _train_here(options, rest, folder, watch)
        with fail_fast.leaving(_code, who=cluster.place, now=watch.now, folder=folder):
            _train_here(options, rest, folder, watch)


def _run_of(options: argparse.Namespace) -> Path:
    return options.workdir or Path("runs", Path(options.config).stem)


def _train_here(
    options: argparse.Namespace, rest: list[str], folder: Path, watch: watchdog.Watch
) -> None:
    from jaxdist import cluster, experiment, handshake, inheriting
    from jaxdist.train import train

    handshake.shake("start", handshake.surroundings)
    watch.enter("read", 0)
    config = experiment.read(options.config, rest)
    handshake.shake("run", lambda: handshake.of_run(config))
    first = cluster.place()[0] == 0  # which speaks for all of a job
    say = (lambda line: print(line, flush=True)) if first else lambda line: None
    inheriting.prepare(config, folder, init_from=options.init_from, resume=options.resume, say=say)
    outcome = train(config, folder, resume=options.resume, say=say, watch=watch)
    if not first:
        return
    if not outcome.finished:
        again = ["jaxdist", "train", options.config, *rest, "--workdir", str(folder)]
        print(f"saved step {outcome.step}; to go on: {shlex.join(again)}")
    else:
        _rows(outcome.last)
        _row("run folder", folder)


def _launch(options: argparse.Namespace, rest: list[str]) -> int:
    from jaxdist import launch, submit

    given = options.train[1:] if options.train[:1] == ["--"] else options.train
    if given[:1] != ["train"]:
        _refuse("jaxdist launch --processes 2 -- train CONFIG ...: expected train after --")
    inner, _ = _parser().parse_known_args(given)
    if options.on:
        if not options.dry_run:
            _refuse(
                f"--on {options.on} prints what to run elsewhere: write --on {options.on} --dry-run"
            )
        names = ("name", "processes", "max_restarts", "zone", "image", "topology")
        place = submit.Place(**{name: getattr(options, name) for name in names})
        print(submit.SITES[options.on](given, place))
        return 0
    if options.dry_run:
        _refuse("--dry-run prints what another site runs: write --on slurm --dry-run")
    return launch.launch(
        given,
        _run_of(inner),
        processes=options.processes,
        devices_per_process=options.devices_per_process,
        max_restarts=options.max_restarts,
    )


def _status(options: argparse.Namespace, rest: list[str]) -> None:
    import time

    from jaxdist import status

    while True:
        # All rows first: a picture of one moment, and a refusal before anything is cleared.
        rows = list(status.rows(options.workdir))
        if options.watch:
            print("\033[H\033[J", end="")
        for name, value in rows:
            _row(name, value)
        if not options.watch:
            return
        sys.stdout.flush()
        time.sleep(1)


def _rows(line: dict[str, float]) -> None:
    words = {
        "accuracy": ("test accuracy", ".4f"),
        "worst_accuracy": ("  of the worst worker", ".4f"),
        "consensus_distance": ("consensus distance", ".3e"),
        "bytes_sent": ("bytes sent per worker", ",.0f"),
    }
    for name, (word, form) in words.items():
        if name in line:
            _row(word, format(line[name], form))


def _eval(options: argparse.Namespace, rest: list[str]) -> None:
    given = {folder for folder in (options.run_folder, options.workdir) if folder is not None}
    if len(given) != 1:
        _refuse("jaxdist eval evaluates one run: write jaxdist eval WORKDIR")
    workdir = given.pop()
    import jax

    from jaxdist import checkpoint, experiment, metrics

    made = experiment.read_again(workdir).experiment
    trainer = experiment.trainer_of(made)
    state = trainer.init(made.task.init(jax.random.key(made.seed)))
    found = checkpoint.restore(workdir / "checkpoints", state)
    if found is None:
        raise ValueError(f"{workdir} holds no checkpoint yet; write jaxdist train")
    for line in found.said:
        print(line)
    _row("step", f"{found.step} of {made.steps}")
    _rows(metrics.evaluate(trainer, found.state, made.task.accuracy, made.task.test))


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxdist import report, run_folder

    runs = {}
    for folder in options.runs:
        run_folder.read_record(folder)  # refuses what is no run
        metrics = run_folder.read_metrics(folder)
        if not metrics:
            raise ValueError(f"{folder} has no metrics yet; write jaxdist train")
        runs[str(folder)] = metrics
    if len(runs) < 2:
        _refuse("jaxdist compare needs two different runs: write jaxdist compare runs/a runs/b")
    print(report.compare(runs))
    file = options.output or options.workdir / "comparison.png"
    _writable(file.parent)
    report.draw_comparison(runs, file)
    _row("drawn", file)


def _check(options: argparse.Namespace, rest: list[str]) -> None:
    import jax

    from jaxdist import experiment, run_folder
    from jaxdist.algorithms.base import bytes_sent
    from jaxdist.data import check_batch

    config = experiment.read(options.config, rest)
    made = config.experiment
    batch = made.task.stream.batch(0)
    check_batch(batch, classes=made.task.classes)
    trainer = experiment.trainer_of(made)
    params = made.task.init(jax.random.key(made.seed))
    trainer.compiled.lower(trainer.init(params), trainer.place(batch))
    if options.workdir:
        run_folder.check(options.workdir, keywords=config.keywords, source=config.source)
    for name, value in config.keywords.items():
        _row(name, value)
    _row("parameters", f"{sum(x.size for x in jax.tree.leaves(params)):,}")
    if made.algorithm.sends:
        sent = bytes_sent(made.algorithm, params, 0, workers=made.workers)
        _row("bytes sent at step 0", f"{sent:,} per worker")
    _row("devices", f"{trainer.mesh.size} x {trainer.mesh.devices.flat[0].device_kind}")
    for name, leaf in batch.items():
        _row(f"batch {name}", f"{leaf.dtype}{list(leaf.shape)}")
    print(f"{options.config} is fine")


def _inspect(options: argparse.Namespace, rest: list[str]) -> None:
    import json

    import jax

    from jaxdist import audit, experiment, layout, run_folder, targets

    # Simulated devices must be asked for before JAX makes its first array.
    devices = targets.devices(options.target)
    config = experiment.read(options.config, rest)
    made = config.experiment
    mesh = layout.default_mesh(made.workers, devices)
    trainer = experiment.trainer_of(made, mesh=mesh)
    params = jax.eval_shape(made.task.init, jax.random.key(made.seed))
    found = audit.inspect(trainer.lower(params, made.task.stream.batch(0)))
    kind = mesh.devices.flat[0].device_kind
    print(f"{options.config}: {made.workers} workers on {mesh.size} x {kind}, one step\n")
    print(audit.table(found))
    if options.json:
        run_folder.replace(options.json, json.dumps(found.as_json(), indent=1) + "\n")
        _row("written to", options.json)


def _topology(options: argparse.Namespace, rest: list[str]) -> None:
    import difflib

    import numpy as np

    from jaxdist import report, topology

    name = options.name
    if name not in topology.CATALOGUE:
        near = difflib.get_close_matches(name, topology.CATALOGUE, 3) or sorted(topology.CATALOGUE)
        raise ValueError(f"there is no topology {name!r}; did you mean {', '.join(near)}?")
    made = topology.CATALOGUE[name](options.size)
    print(made)
    printed = min(made.period, 4) if made.size <= 16 else 0
    for step in range(printed):
        print(f"matrix of round {step} (row: who receives)")
        print(np.array2string(made.matrix(step), precision=3, suppress_small=True))
    if 0 < printed < made.period:
        print(f"{made.period - printed} more rounds are not printed")
    _row("degree", made.degree)
    _row("directed", "yes" if made.directed else "no")
    _row("stochastic", made.stochastic)
    _row("spectral gap", f"{made.spectral_gap:.4g}")
    _row("rounds to consensus", _rounds(made))
    file = options.output or options.workdir / f"{name}_{options.size}.png"
    _writable(file.parent)
    report.draw_topology(made, file, title=f"{name}, size {made.size}")
    _row("drawn", file)


def _rounds(topology) -> str:
    """Rounds of mixing until no worker is further than a thousandth from where all end."""
    import numpy as np

    values, weights = np.eye(topology.size), np.ones(topology.size)
    for rounds in range(10_000):
        ratio = values / weights[:, None]
        if np.abs(ratio - values.sum(0) / topology.size).max() < 1e-3 or topology.size == 1:
            return f"{rounds} (from anywhere to within 1e-3)"
        values, weights = topology.matrix(rounds) @ values, topology.matrix(rounds) @ weights
    return "more than 10,000"


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}; choose another folder") from None


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxdist.data import preparing, tfds

    if options.action == "prepare":
        preparing.prepare(options.name, data_dir=options.data_dir)
    folder = tfds.directory(options.data_dir)
    for name in tfds.prepared(folder) or ["nothing is prepared"]:
        print(f"{name} in {folder}")


def _doctor(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxdist import doctor

    for name, value in doctor.examine(options.workdir):
        _row(name, value)

"""Commands that run an experiment or speak of its run: train, launch, status, eval."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from jaxdist import fail_fast, hangup, rank, store, watchdog
from jaxdist.commands import printing
from jaxdist.errors import Refused


def train(options: argparse.Namespace, rest: list[str]) -> int:
    """Trains a config, or goes on with its run."""
    folder = _run_of(options)
    # Who this process is: until JAX is there the environment says it.
    known = [rank.expected]

    def joining() -> str:
        from jaxdist import cluster

        return cluster.joining()

    with watchdog.watching(lambda: known[-1](), joining=joining) as watch:
        if fail_fast.supervised():
            watch.follow(folder)
        from jaxdist import cluster  # and with it JAX, which can take long

        known.append(cluster.expected)
        watch.enter("start", 0)
        # JAX must join the other processes before a config makes its first array.
        joined = cluster.join()
        known.append(cluster.place)
        if not joined and not fail_fast.supervised():
            return _train_here(options, rest, folder, watch)
        kept = Path(os.devnull) if store.afar(folder) else folder  # no error.json behind a URL
        with fail_fast.leaving(printing.exit_code, who=cluster.place, now=watch.now, folder=kept):
            return _train_here(options, rest, folder, watch)


def _run_of(options: argparse.Namespace) -> Path:
    return options.workdir or Path("runs", Path(options.config).stem)


def _train_here(
    options: argparse.Namespace, rest: list[str], folder: Path, watch: watchdog.Watch
) -> int:
    from jaxdist import cluster, experiment, handshake, inheriting, meeting, resuming
    from jaxdist.train import train

    handshake.shake("start", handshake.surroundings)
    watch.enter("read", 0)
    config = experiment.read(options.config, rest)
    handshake.shake("run", lambda: handshake.of_run(config))
    first = cluster.place()[0] == 0  # which speaks for all of a job
    say = (lambda line: hangup.say(line, sys.stdout)) if first else lambda line: None
    resume = resuming.in_this_life(options.resume)
    with printing.memory_explained():
        inheriting.prepare(
            config,
            folder,
            init_from=options.init_from,
            init_config=options.init_config,
            resume=resume,
            say=say,
        )
        outcome = train(config, folder, resume=resume, say=say, watch=watch)
    if outcome.finished:
        if first:
            printing.rows(outcome.last)
            printing.row("run folder", folder)
        return 0
    if first:
        again = ["jaxdist", "train", options.config, *rest, "--workdir", str(folder)]
        say(f"saved step {outcome.step}; to go on: {shlex.join(again)}")
    if code := fail_fast.stopped(outcome.step):
        # Who starts processes may end all of them with the first that leaves by such a code.
        meeting.meet("end", outcome.step, folder=folder)
    return code


def launch(options: argparse.Namespace, rest: list[str]) -> int:
    """Trains in several processes on this host."""
    from jaxdist import launch, submit

    given = options.train[1:] if options.train[:1] == ["--"] else options.train
    if given[:1] != ["train"]:
        printing.refuse("jaxdist launch --processes 2 -- train CONFIG ...: expected train after --")
    names = {name for names in submit.USES.values() for name in names}
    written = {name: getattr(options, name) for name in sorted(names)}
    written = {name: value for name, value in written.items() if value is not None}
    if options.on:
        if not options.dry_run:
            printing.refuse(
                f"--on {options.on} prints what to run elsewhere: write --on {options.on} --dry-run"
            )
        # Its URLs are for that site: nothing here has to be able to read them.
        options.parser.parse_known_args([word.replace("://", "/") for word in given])
        print(submit.text(options.on, given, written))
        for line in submit.remarks(options.on, given, written):
            print(f"jaxdist: {line}", file=sys.stderr)
        return 0
    if options.dry_run:
        printing.refuse("--dry-run prints what another site runs: write --on slurm --dry-run")
    submit.check_used(submit.HERE, written)
    inner, _ = options.parser.parse_known_args(given)
    folder = _run_of(inner)
    if store.afar(folder):
        printing.refuse(
            f"--workdir {folder}: jaxdist launch keeps its own records in the run's folder: write a path; "
            "a URL is for jaxdist train in every process"
        )
    return launch.launch(given, folder, **written)


def status(options: argparse.Namespace, rest: list[str]) -> None:
    """Says what a run does now."""
    import time

    from jaxdist import status

    while True:
        # All rows first: a picture of one moment, and a refusal before anything is cleared.
        rows = list(status.rows(options.workdir))
        if options.watch:
            print("\033[H\033[J", end="")
        for name, value in rows:
            printing.row(name, value)
        if not options.watch:
            return
        sys.stdout.flush()
        time.sleep(1)


def evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    """Evaluates the newest checkpoint of a run."""
    given = {folder for folder in (options.run_folder, options.workdir) if folder is not None}
    if len(given) != 1:
        printing.refuse("jaxdist eval evaluates one run: write jaxdist eval WORKDIR")
    workdir = given.pop()
    import jax

    from jaxdist import checkpoint, experiment, metrics

    made = experiment.read_again(workdir, config=options.config, say=print).experiment
    trainer = experiment.trainer_of(made)
    state = trainer.init(made.task.init(jax.random.key(made.seed)))
    found = checkpoint.restore(workdir / "checkpoints", state)
    if found is None:
        raise Refused(f"{workdir} holds no checkpoint yet; write jaxdist train")
    for line in found.said:
        print(line)
    printing.row("step", f"{found.step} of {made.steps}")
    printing.rows(metrics.evaluate(trainer, found.state, made.task.accuracy, made.task.test))

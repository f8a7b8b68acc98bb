"""The loop: a run that trains, records and saves, can be killed at any step, and goes on."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import feed, layout, meeting, metrics, report, resuming, run_folder, stopping, store
from jaxdist.algorithms.base import bytes_sent
from jaxdist.data import check_batch
from jaxdist.experiment import Config, made_of, report_every, trainer_of
from jaxdist.metric_lines import read_metrics, truncate_metrics
from jaxdist.resuming import Resume, Say
from jaxdist.saving import saving
from jaxdist.step_metrics import check_finite, everywhere, finite_points, lines
from jaxdist.watchdog import NOBODY, Watch


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      step: the last step; it is saved.
      finished: whether no step is left.
      last: the newest line of the metrics that holds an evaluation; empty: there is none.
    """

    step: int
    finished: bool
    last: dict[str, Any]


def train(
    config: Config,
    folder: Path,
    *,
    resume: Resume = "auto",
    say: Say = print,
    watch: Watch = NOBODY,
) -> Outcome:
    """Trains an experiment to its end, from where its folder says that it is.

    Args:
      config: what `experiment.read` returned.
      folder: the run's own, of `jaxdist/store.py`; made if need be. What it holds is listed in
        `jaxdist/run_folder.py`.
      resume: `"must"` refuses a folder without a checkpoint, `"never"` one with.
      say: what to do with a line for the user.
      watch: is told what the loop does.

    Raises:
      Refused: the folder holds another experiment, or is in use, or the first batch is not fit to
        train on. Nothing was changed.
      NotFinite: a loss, a gradient or a parameter is not finite; names step, worker and
        leaf. What was saved before is still there.
      NoRoom: the disk is full, or the folder is gone; says how much room there is.
    """
    with run_folder.locked(folder, say=say, now=watch.now) as check, stopping.asked(say) as stop:
        return _train(config, folder, resume, check, stop, say, watch)


def _train(
    config: Config, folder: Path, resume: Resume, check: Any, stop: Any, say: Say, watch: Watch
) -> Outcome:
    # Shapes. All that can be refused is refused before anything is compiled or written.
    watch.enter("init", 0)
    experiment, task = config.experiment, config.experiment.task
    every = report_every(experiment)
    run_folder.check(folder, **made_of(config), say=say)
    check_batch(task.stream.batch(0), classes=task.classes)

    # Shardings. The executor lays workers on the devices of all processes.
    trainer = trainer_of(experiment)
    params = task.init(jax.random.key(experiment.seed))
    sends = partial(bytes_sent, experiment.algorithm, params, workers=experiment.workers)

    # Arrays. Where the run is.
    state = trainer.init(params)
    saves = folder / "checkpoints"
    watch.enter("restore", 0)
    state, begin, sums = resuming.newest(folder, state, resume=resume, say=say)
    meeting.check_same_step(begin)
    more = state if begin < experiment.steps else ()
    run_folder.claim(folder, config=str(config.path), **made_of(config), state=more)
    if not store.afar(folder):
        watch.follow(folder)
    if jax.process_index() == 0:
        truncate_metrics(folder, begin, sums.began, say=say)
    kind, on = resuming.kind(begin, experiment.steps), layout.devices_of(trainer.mesh)
    where = f"{experiment.workers} workers on {on}, in {folder}"
    say(f"{kind}: step {begin} of {experiment.steps}, {where}")

    # Loop. The host waits for its own devices, a step late, and for those of others once in a while.
    done, pending, evaluated = begin, {}, {}
    recording = partial(metrics.recording, begin=begin, steps=experiment.steps, sums=sums)
    with (
        recording(folder, check=check) as recorder,
        feed.batches(task.stream, trainer, begin, resident=experiment.resident) as batches,
        saving(saves, keep=run_folder.KEPT, check=check, moved=watch.moved) as saver,
    ):

        def settle() -> None:
            for step, line in lines(pending, trainer, params, room=every):
                recorder.write(step, {**line, **evaluated.pop(step, {})}, sends(step - 1))
            pending.clear()

        def meet(phase: str) -> None:
            watch.enter(phase, done)
            meeting.meet(phase, done, folder=folder)

        def save() -> None:
            """Saves what is known to be good, after the lines that lead to it."""
            meet("save")
            settle()
            finite = everywhere(finite_points(trainer.gradient_at(state)), trainer)
            check_finite(done, finite, params, of="parameters")
            recorder.sync()
            saver.save(done, state, recorder.sums().as_extra())

        while done < experiment.steps and not stop(done):
            watch.enter("data", done)
            batch = next(batches)
            watch.enter("step" if done > begin else "compile", done)
            with jax.transfer_guard("disallow"):
                state, measured = trainer.step(state, batch)
            jax.block_until_ready(pending.get(done))
            if done % every == 0:
                settle()
            done += 1
            recorder.reach(done)
            pending[done] = measured
            if (last := done == experiment.steps) or done % experiment.evaluate_every == 0:
                meet("evaluate")
                evaluated[done] = metrics.evaluate(trainer, state, task.accuracy, task.test)
            if last or done % experiment.save_every == 0:
                save()
        if done > begin:
            save()

    watch.enter("end", done)
    recorded = read_metrics(folder)
    if recorded and jax.process_index() == 0:
        try:
            report.draw_run(recorded, folder / "run.png", title=str(config.path))
        except OSError as error:  # a picture is not worth a run
            say(f"run.png was not drawn: {error}")
    evaluations = [line for line in recorded if "accuracy" in line]
    return Outcome(done, done >= experiment.steps, evaluations[-1] if evaluations else {})

"""The loop: a run that trains, records and saves, can be killed at any step, and goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxdist import checkpoint, feed, metrics, report, run_folder, stopping
from jaxdist.algorithms.base import bytes_sent
from jaxdist.data import check_batch
from jaxdist.experiment import Config, trainer_of
from jaxdist.saving import saving

Say = Callable[[str], None]
Resume = Literal["auto", "must", "never"]


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


def train(config: Config, folder: Path, *, resume: Resume = "auto", say: Say = print) -> Outcome:
    """Trains an experiment to its end, from where its folder says that it is.

    Args:
      config: what `experiment.read` returned.
      folder: the run's own; made if need be. What it holds is listed in `jaxdist/run_folder.py`.
      resume: `"must"` refuses a folder without a checkpoint, `"never"` one with.
      say: what to do with a line for the user.

    Raises:
      ValueError: the folder holds another experiment, or is in use, or the first batch is not fit to
        train on. Nothing was changed.
      FloatingPointError: a loss, a gradient or a parameter is not finite; names step, worker and
        leaf. What was saved before is still there.
    """
    with run_folder.locked(folder), stopping.asked(say) as stop:
        return _train(config, folder, resume, stop, say)


def _train(
    config: Config, folder: Path, resume: Resume, stop: Callable[[int], bool], say: Say
) -> Outcome:
    # Shapes. All that can be refused is refused before anything is compiled or written.
    experiment = config.experiment
    run_folder.check(folder, keywords=config.keywords, source=config.source)
    check_batch(experiment.task.stream.batch(0), classes=experiment.task.classes)

    # Shardings. The executor lays workers on the devices of all processes.
    trainer = trainer_of(experiment, finite=True)
    params = experiment.task.init(jax.random.key(experiment.seed))
    sends = partial(bytes_sent, experiment.algorithm, params, workers=experiment.workers)

    # Arrays. Where the run is.
    state = trainer.init(params)
    saves = folder / "checkpoints"
    found = checkpoint.restore(saves, state)
    begin = _begin(found, folder, resume, say)
    state = state if found is None else found.state
    run_folder.claim(
        folder,
        config=str(config.path),
        keywords=config.keywords,
        source=config.source,
        state=state,
    )
    sent = run_folder.forget_after(folder, begin).get("bytes_sent", 0)
    on = f"{trainer.mesh.size} x {trainer.mesh.devices.flat[0].device_kind}"
    what = f"step {begin} of {experiment.steps}, {experiment.workers} workers on {on}, in {folder}"
    if begin >= experiment.steps:
        say(f"already complete: {what}")
    else:
        say(f"{'resuming' if begin else 'fresh run'}: {what}")

    # Loop. Metrics are read one step late, so that the devices never wait for the host.
    done, pending, evaluated = begin, {}, {}
    with (
        metrics.recording(folder, begin=begin, steps=experiment.steps) as recorder,
        feed.batches(
            experiment.task.stream, trainer, begin, resident=experiment.resident
        ) as batches,
        saving(saves, keep=2) as saver,
    ):

        def settle() -> None:
            nonlocal sent
            for step in list(pending):
                line = metrics.fetch(pending.pop(step), trainer)
                metrics.check_finite(step, line.pop("finite"), params)
                sent += sends(step - 1)
                line = {name: float(x) for name, x in line.items() if x.ndim == 0}
                recorder.write(step, {**line, **evaluated.pop(step, {}), "bytes_sent": sent})

        def save() -> None:
            """Saves what is known to be good, after the lines that lead to it."""
            settle()
            finite = metrics.fetch(metrics.finite_points(trainer.gradient_at(state)), trainer)
            metrics.check_finite(done, finite, params, of="parameters")
            recorder.sync()
            saver.save(done, state)

        while done < experiment.steps and not stop(done):
            batch = next(batches)
            with jax.transfer_guard("disallow"):
                state, measured = trainer.step(state, batch)
            done += 1
            settle()
            pending[done] = measured
            last = done == experiment.steps
            if last or done % experiment.evaluate_every == 0:
                evaluated[done] = metrics.evaluate(
                    trainer, state, experiment.task.accuracy, experiment.task.test
                )
            if last or done % experiment.save_every == 0:
                save()
        if done > begin:
            save()

    recorded = run_folder.read_metrics(folder)
    if recorded and jax.process_index() == 0:
        report.draw_run(recorded, folder / "run.png", title=str(config.path))
    evaluations = [line for line in recorded if "accuracy" in line]
    return Outcome(done, done >= experiment.steps, evaluations[-1] if evaluations else {})


def _begin(found: checkpoint.Restored | None, folder: Path, resume: Resume, say: Say) -> int:
    """The step to go on from; says which checkpoints were refused."""
    if resume == "must" and found is None:
        raise ValueError(f"--resume must: {folder} holds no checkpoint; write --resume auto")
    if resume == "never" and found is not None:
        raise ValueError(f"--resume never: {folder} holds step {found.step}; choose another folder")
    for line in () if found is None else found.said:
        say(line)
    return 0 if found is None else found.step

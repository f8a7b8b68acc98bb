"""A run that begins where another one is: with other workers, for more steps, or by another method."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxdist import checkpoint, metric_lines, provenance, run_folder, store
from jaxdist.algorithms.base import State
from jaxdist.errors import Refused
from jaxdist.executor import Trainer, execute
from jaxdist.experiment import Config, made_of, read_again
from jaxdist.resize import resize

# What may differ between two runs of one method, so that the newer one goes on at the older one's step.
MEMBERSHIP = {"workers", "steps"}


def prepare(
    config: Config,
    folder: Path,
    *,
    init_from: Path | None,
    init_config: str | None = None,
    resume: str = "auto",
    say: Callable[[str], None] = print,
) -> None:
    """Puts the state of another run into a folder, as its first checkpoint; `train` then goes on.

    Where the config's text is the same and nothing but `workers` and `steps` differs, the run goes on at
    the step of the other: by `jd.resize` if the workers are others. Else its parameters are carried,
    and all else begins anew at step 0. A folder that has a checkpoint goes on from its own.

    Args:
      config: of the run that is to begin.
      folder: its own.
      init_from: the other run's folder, which is only read. None: none, unless the folder was begun from
        one and killed before it had a checkpoint.
      init_config: the file with the config of that other run. None: `config`'s own, if it is the same
        program; else the one that `experiment.read_again` finds.
      resume: what `train` will be told.
      say: what to do with a line for the user.

    Raises:
      Refused: the other folder holds no run, no checkpoint, or parameters that the config's model
        does not have (named), the run would have no step left, or what `jd.resize` refuses.
    """
    saves = folder / "checkpoints"
    if (folder / run_folder.RECORD).exists() and init_from is None:
        before = run_folder.read_record(folder).get("init_from")
        init_from = store.folder(before) if before else None
    if init_from is None or checkpoint.steps(saves):
        return
    if resume != "auto":
        raise Refused(
            f"--resume {resume} with --init-from {init_from}: expected --resume auto, by which {folder} "
            "goes on from its own checkpoints once it has some"
        )
    with run_folder.locked(folder, say=say) as check:
        run_folder.check(folder, **made_of(config))
        state, said = _inherited(config, init_from, init_config, say)
        step, steps = int(state.step), config.experiment.steps
        if step >= steps:
            raise Refused(
                f"--init-from {init_from} is at step {step}, and {steps} steps are asked for: expected "
                f"more; write for example --steps {2 * step}"
            )
        run_folder.claim(
            folder,
            config=str(config.path),
            **made_of(config),
            state=state,
            init_from=init_from,
        )
        extra = metric_lines.Sums(began=step).as_extra()
        checkpoint.write(saves, step, checkpoint.ready(state, extra=extra), check=check)
        say(said)


def _inherited(
    config: Config, folder: Path, named: str | None, say: Callable[[str], None]
) -> tuple[State, str]:
    """The state to begin with, and a line that says where it is from and what was carried."""
    # Where it is the same program, the user has named it: the folder need not be the user's own.
    source = run_folder.read_record(folder)["source"]
    same = provenance.same_program(source, config.source)
    try:
        other = read_again(folder, config=named or (str(config.path) if same else None), say=say)
    except Refused as error:
        raise Refused(str(error).replace("--config", "--init-config")) from None
    old, state = _trainer(other)
    found = checkpoint.restore(folder / "checkpoints", state)
    if found is None:
        raise Refused(f"--init-from {folder} holds no checkpoint; write jaxdist train there first")
    where = f"from step {found.step} of {folder}, {other.experiment.workers} workers"
    where = "; ".join([*found.said, where])
    differs = run_folder.changes(other.keywords, config.keywords).keys()
    if not provenance.same_program(other.source, config.source) or differs - MEMBERSHIP:
        params = old.readout(found.state)
        new, state = _trainer(config, like=params)
        return new.init(params), f"{where}: parameters are carried, all else begins anew at step 0"
    if "workers" not in differs:
        return found.state, f"{where}: all is carried"
    state, said = resize(found.state, old, _trainer(config)[0])
    return state, f"{where}, {config.experiment.workers} from now on: {said}"


def _trainer(config: Config, *, like: Any = None) -> tuple[Trainer, State]:
    """An experiment's trainer and its first state; refuses parameters that are not like others."""
    made = config.experiment
    params = made.task.init(jax.random.key(made.seed))
    if like is not None and (difference := _difference(like, params)):
        raise Refused(f"--init-from: the parameters do not fit {config.path}: {difference}")
    trainer = execute(
        made.algorithm,
        made.task.loss_fn,
        workers=made.workers,
        seed=made.seed,
        clock=made.clock,
        network=made.network,
    )
    return trainer, trainer.init(params)


def _difference(there: Any, here: Any) -> str:
    """The first leaf in which two pytrees of arrays differ; empty: none."""
    then, now = (
        {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (there, here)
    )
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            has, wants = (leaves.get(name, "missing") for leaves in (then, now))
            return f"{name or 'the one array'} is {has} there and {wants} here"
    return ""

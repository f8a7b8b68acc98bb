"""Where a run goes on from: its newest intact checkpoint, or the beginning."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxdist import checkpoint, fault_plan, metric_lines
from jaxdist.errors import Refused

Resume = Literal["auto", "must", "never"]
Say = Callable[[str], None]


def in_this_life(resume: Resume, surroundings: Mapping[str, str] = os.environ) -> Resume:
    """What `--resume` asks for in the life of a job that this is, as its supervisor or SLURM counts them.

    What a later life finds is its own: "never" is said to the first one, which may have died before it had a
    checkpoint.

    >>> in_this_life("never", {}), in_this_life("never", {"SLURM_RESTART_COUNT": "1"})
    ('never', 'auto')
    """
    slurm = surroundings.get("SLURM_RESTART_COUNT", "")
    later = fault_plan.restarts(surroundings) or (slurm.isdecimal() and int(slurm))
    return "auto" if resume == "never" and later else resume


def newest(
    folder: Path, state: Any, *, resume: Resume, say: Say
) -> tuple[Any, int, metric_lines.Sums]:
    """The state to go on from, its step, and what the run has added up. Newer steps are set aside.

    Args:
      folder: the run's.
      state: where a fresh run begins.
      resume: `"must"` refuses a folder without a checkpoint, `"never"` one with.
      say: what to do with a line that says which checkpoints were refused, and why.

    Raises:
      Refused: what `resume` refuses, or no checkpoint is intact, or it bears the number of another step.
    """
    found = checkpoint.restore(folder / "checkpoints", state)
    if resume == "must" and found is None:
        raise Refused(f"--resume must: {folder} holds no checkpoint; write --resume auto")
    if resume == "never" and found is not None:
        raise Refused(f"--resume never: {folder} holds step {found.step}; choose another folder")
    if found is None:
        return state, 0, metric_lines.NOTHING
    if (step := int(found.state.step)) != found.step:
        raise Refused(
            f"{folder}/checkpoints/{found.step} holds step {step}: expected the step it is named after; "
            f"give it the name {step} again"
        )
    for line in (*found.said, *checkpoint.set_aside(folder / "checkpoints", after=found.step)):
        say(line)
    return found.state, found.step, metric_lines.sums(found.extra, folder, found.step)


def kind(begin: int, steps: int) -> str:
    """What to call a run that begins at this step.

    >>> kind(0, 100), kind(40, 100), kind(100, 100)
    ('fresh run', 'resuming', 'already complete')
    """
    return "already complete" if begin >= steps else "resuming" if begin else "fresh run"

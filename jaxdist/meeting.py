"""Where all processes of a run meet on the host, at one step, before they do together what is rare.

A program that only one of them starts would exchange with whatever the others are in, or wait for ever.
"""

from pathlib import Path

from jaxdist import cluster, peers, watchdog
from jaxdist.errors import Refused


def meet(phase: str, step: int, *, folder: Path) -> None:
    """Returns when every process is in this phase of this step; alone at once.

    Args:
      phase: a key of `peers.DOES`.
      step: after how many steps.
      folder: the run's, where the others say what they do.

    Raises:
      RuntimeError: one of them does not come; names its phase and its step.
    """
    # Less than what ends a process as stuck, so that it is this that is said.
    seconds = min(cluster.SECONDS, watchdog.patience_seconds() / 2)
    try:
        cluster.barrier(phase, step, seconds=seconds)
    except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        mine = cluster.place()[0]
        others = [
            f"process {one['process']} is {peers.place(one['phase'], one['step'])}"
            for one in peers.read(folder)
            if one["process"] != mine
        ]
        raise RuntimeError(
            f"process {mine} has waited {seconds:.0f} s, {peers.place(phase, step)}, for the others: "
            f"{'; '.join(others) or 'they have said nothing'}: expected all at one step; look for what "
            "the config does in one process only"
        ) from None


def check_same_step(step: int) -> None:
    """Refuses processes that would go on from different steps.

    Raises:
      Refused: names the step of each.
    """
    steps = cluster.everyone("first step", step)
    if {*steps} != {step}:
        told = ", ".join(f"process {i} from step {one}" for i, one in enumerate(steps))
        raise Refused(
            f"the processes would go on from different steps ({told}): expected one folder that all "
            "of them see; write a --workdir on a file system that all hosts mount"
        )

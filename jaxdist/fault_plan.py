"""Faults on purpose, for tests: which process is to die, stop or raise in which phase of which step.

    JAXDIST_TEST_FAULTS=1 JAXDIST_FAULT_PLAN="kill:2@step=17,raise:1@data=5/1" jaxdist launch ...

`ACTION:PROCESS@PHASE=STEP` happens when that process enters that phase of that step, in the first
life of the job; after `/K` stands another life (the number of restarts before it). `=*` is any step, `/*`
every life.
kill, stop and term are signals, raise is an error, hang waits for ever, and hold does so in a library that
lets no other thread run. Without JAXDIST_TEST_FAULTS=1 the plan is not even read.
"""

import ctypes
import os
import re
import signal
import time
from collections.abc import Mapping
from typing import NamedTuple

from jaxdist.errors import Refused

ACTIONS = ("kill", "stop", "hang", "hold", "raise", "term")
PLAN, ALLOWED, RESTARTS = "JAXDIST_FAULT_PLAN", "JAXDIST_TEST_FAULTS", "JAXDIST_RESTARTS"


class Fault(NamedTuple):
    """One thing that is to go wrong.

    Attributes:
      action: one of `ACTIONS`.
      process: whose.
      phase: what it has just begun (`jaxdist/watchdog.py` has the words).
      step: of which step; None: of any.
      life: after how many restarts; None: in every life.
    """

    action: str
    process: int
    phase: str
    step: int | None
    life: int | None


def read(surroundings: Mapping[str, str] = os.environ) -> tuple[Fault, ...]:
    """The plan that the environment holds; none unless it is allowed.

    Raises:
      Refused: a fault that is not written as above.

    Example:
      >>> read({"JAXDIST_TEST_FAULTS": "1", "JAXDIST_FAULT_PLAN": "kill:2@step=17"})
      (Fault(action='kill', process=2, phase='step', step=17, life=0),)
      >>> read({"JAXDIST_FAULT_PLAN": "kill:2@step=17"})
      ()
    """
    if surroundings.get(ALLOWED) != "1":
        return ()
    return tuple(_fault(text) for text in surroundings.get(PLAN, "").split(",") if text)


def _fault(text: str) -> Fault:
    found = re.fullmatch(r"([a-z]+):(\d+)@([a-z]+)=(\d+|\*)(?:/(\d+|\*))?", text)
    if found is None or found[1] not in ACTIONS:
        raise Refused(
            f"{PLAN}: {text!r}: expected ACTION:PROCESS@PHASE=STEP with one of {', '.join(ACTIONS)}; "
            "write kill:1@step=17"
        )
    life = None if found[5] == "*" else int(found[5] or 0)
    step = None if found[4] == "*" else int(found[4])
    return Fault(found[1], int(found[2]), found[3], step, life)


def restarts(surroundings: Mapping[str, str] = os.environ) -> int:
    """How many lives of this job were before this one, as the supervisor says."""
    text = surroundings.get(RESTARTS, "")
    return int(text) if text.isdecimal() else 0


def meet(plan: tuple[Fault, ...], process: int, phase: str, step: int) -> None:
    """Does what the plan says of this moment.

    Raises:
      RuntimeError: where the plan says raise.
    """
    for fault in plan:
        now = (fault.process, fault.phase) == (process, phase) and fault.step in (None, step)
        if not now or fault.life not in (None, restarts()):
            continue
        if fault.action == "raise":
            raise RuntimeError(f"a fault of the plan, in phase {phase} of step {step}")
        while fault.action == "hang":
            time.sleep(1000)
        while fault.action == "hold":
            # As a library that never lets go of the interpreter: no other thread of Python runs.
            ctypes.PyDLL(None).sleep(1000)
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
        os.kill(os.getpid(), number[fault.action])

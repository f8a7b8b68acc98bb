"""What a *compiled* program sends, always and in each branch of its conditionals."""

from typing import NamedTuple

from jaxdist.audit import hlo
from jaxdist.audit.traffic import transfers


class Found(NamedTuple):
    """Bytes handed to collectives: what always runs, and for each conditional, by branch."""

    always: int
    conditionals: list[list[int]]


def read(text: str) -> Found:
    """The collectives of a compiled program, from `lowered.compile().as_text()`.

    A conditional that communicates is listed with the bytes of each of its branches (for a boolean
    one: false, true), nested ones added up; a loop counts as one trip.
    """
    program = hlo.parse(text)
    branches = [
        [
            sum(sent.bytes for sent in transfers(program._replace(entry=branch)))
            for branch in hlo.branches(visit.instruction)
        ]
        for visit in hlo.walk(program)
        if visit.instruction.opcode == "conditional" and not visit.branch
    ]
    always = sum(sent.bytes for sent in transfers(program) if not sent.branch)
    return Found(always, [one for one in branches if any(one)])

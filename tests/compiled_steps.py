"""What a *compiled* program does in each of its conditionals, read from XLA's own text."""

import re
from typing import NamedTuple

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


class Found(NamedTuple):
    """Bytes handed to collectives: what always runs, and for each conditional, by branch."""

    always: int
    conditionals: list[list[int]]


def read(text: str) -> Found:
    """The collectives of a compiled program, from `lowered.compile().as_text()`.

    Follows calls, fusions and loops from the entry; a conditional that communicates is listed with
    the bytes of each of its branches (for a boolean one: false, true), nested ones added up.
    """
    bodies, entry = _computations(text)
    conditionals: list[list[int]] = []

    def everything(name: str) -> int:
        found = sum(_bytes(line) for line in bodies[name])
        return found + sum(
            everything(other) for line in bodies[name] for other in _callees(line, bodies)
        )

    def visit(name: str) -> int:
        always = 0
        for line in bodies[name]:
            if " conditional(" in line:
                branches = [everything(branch) for branch in _branches(line)]
                if any(branches):
                    conditionals.append(branches)
                continue
            always += _bytes(line) + sum(visit(other) for other in _callees(line, bodies))
        return always

    return Found(visit(entry), conditionals)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and "=" not in line.split("(")[0]:
            current = head[2]
            bodies[current] = []
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            bodies[current].append(line)
    assert entry, "no entry computation: XLA writes its programs in another way"
    return bodies, entry


def _branches(line: str) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", line)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [re.search(rf"{side}_computation=%?([\w.\-]+)", line)[1] for side in ("false", "true")]


def _callees(line: str, bodies: dict[str, list[str]]) -> list[str]:
    if COLLECTIVE.search(line):  # its reducer
        return []
    names = re.findall(
        r"(?:to_apply|calls|body|condition|(?:true|false)_computation)=%?([\w.\-]+)", line
    )
    listed = re.search(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}", line)
    names += [name.strip().lstrip("%") for name in listed[1].split(",")] if listed else []
    return [name for name in names if name in bodies]


def _bytes(line: str) -> int:
    """Bytes of the operands of a collective; 0 for any other line."""
    found = COLLECTIVE.search(line)
    if not found:
        return 0
    result = line[: found.start()].split(" = ")[1]
    total = 0
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
        size = WIDTHS[dtype]
        for n in filter(None, shape.split(",")):
            size *= int(n)
        total += size
    if found[1] == "all-gather":  # its result is what all of a group hand over
        groups = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=)", line)
        total //= int(groups[2]) if groups[2] else len(groups[1].split(","))
    return total

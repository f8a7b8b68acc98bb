"""Optimized HLO as XLA prints it, read into computations of instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxdist.errors import Refused

# Bits of one element, by the name that HLO gives to its type.
BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
# What an asynchronous operation is split into.
START, DONE = "-start", "-done"


class Shape(NamedTuple):
    """One array of an instruction's result.

    >>> Shape("bf16", (4, 8)).bytes
    64
    """

    dtype: str
    dimensions: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 4)
        return -(-math.prod(self.dimensions) * bits // 8)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in the program.
      shapes: the arrays of its result, a tuple's in order.
      opcode: for example `fusion`.
      operands: names of the instructions it takes, in order.
      arguments: what stands between its parentheses (a constant's value).
      rest: its attributes as text.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    rest: str

    def attribute(self, name: str) -> str:
        """The text after `name=` up to the next attribute; empty: it has none."""
        found = re.search(rf"(?:^|[\s,]){name}=", self.rest)
        if not found:
            return ""
        begin = found.end()
        return self.rest[begin : _closing(self.rest, begin)]

    @property
    def cycles(self) -> int:
        """XLA's own estimate, where the backend gives one (TPU); else 0."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: instructions in the order of the text (the schedule, where it is scheduled).
      entry: the name of the computation that runs.
      shapes: the result of every instruction by name.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    shapes: dict[str, tuple[Shape, ...]]


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` returns.

    Args:
      text: optimized HLO of CPU, TPU or GPU.

    Raises:
      Refused: there is no entry computation in it.

    Example:
      >>> program = parse('''HloModule m
      ... ENTRY %main (a: f32[2,3]) -> f32[3,2] {
      ...   %a = f32[2,3]{1,0} parameter(0)
      ...   ROOT %t = f32[3,2]{1,0} transpose(%a), dimensions={1,0}
      ... }''')
      >>> [(one.name, one.opcode, one.shapes[0].bytes) for one in program.computations["main"]]
      [('a', 'parameter', 24), ('t', 'transpose', 24)]
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line))
    if not entry:
        raise Refused("the text has no ENTRY computation; give compiled.as_text()")
    shapes = {one.name: one.shapes for block in computations.values() for one in block}
    return Program(computations, entry, shapes)


def _instruction(line: str) -> Instruction:
    name, text = line.strip().removeprefix("ROOT ").split(" = ", 1)
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0, stop=" ")
    kind = text[:end]
    opcode, _, rest = text[end:].strip().partition("(")
    close = _closing(rest, 0, stop=")")
    # An operand may be written with its type in front of its name.
    arguments = rest[:close]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(
        name.lstrip("%"), _shapes(kind), opcode, operands, arguments, rest[close + 1 :]
    )


def _shapes(text: str) -> tuple[Shape, ...]:
    plain = re.sub(r"\{[^{}]*\}", "", text)  # layouts
    found = re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", plain)
    return tuple(
        Shape(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n))
        for dtype, dims in found
    )


def _closing(text: str, begin: int, *, stop: str = ",") -> int:
    """Where `stop` first stands outside all brackets and quotes."""
    depth, quoted = 0, False
    for i in range(begin, len(text)):
        c = text[i]
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif depth == 0 and c == stop:
            return i
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
    return len(text)


class Visit(NamedTuple):
    """One instruction as it is executed.

    Attributes:
      instruction: it.
      block: the computation it stands in.
      place: its index there.
      times: how often one step runs it, loops multiplied.
      branch: the branches of conditionals that it sits in, outermost first.
      asynchronous: whether something wraps it that runs beside what follows.
      wrapper: the instruction and the place that wrap it so, with their block.
    """

    instruction: Instruction
    block: list[Instruction]
    place: int
    times: int
    branch: tuple[str, ...]
    wrapper: tuple[list[Instruction], int] | None


def walk(program: Program) -> Iterator[Visit]:
    """Every instruction that a step executes, with how often and in which branch.

    Conditionals yield all their branches; loops yield their body once, with `times` multiplied by
    their trips, read from what XLA says of it or from the comparison in its condition.
    """

    def block(name: str, times: int, branch: tuple[str, ...], wrapper) -> Iterator[Visit]:
        instructions = program.computations[name]
        for place, one in enumerate(instructions):
            yield Visit(one, instructions, place, times, branch, wrapper)
            inside = wrapper
            if one.opcode.endswith(START):
                inside = instructions, place
            if one.opcode == "while":
                body = _name(one, "body")
                yield from block(body, times * trips(program, one), branch, inside)
            elif one.opcode == "conditional":
                for number, computation in enumerate(branches(one)):
                    yield from block(computation, times, (*branch, f"case {number}"), inside)
            elif one.opcode in ("fusion", "call", "async-start", "call-start"):
                called = _name(one, "calls") or _name(one, "to_apply")
                if called in program.computations:
                    yield from block(called, times, branch, inside)

    yield from block(program.entry, 1, (), None)


def trips(program: Program, loop: Instruction) -> int:
    """How often a `while` runs its body; 1 where nothing says it."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = program.computations.get(_name(loop, "condition"), [])
    limits = {
        one.name: int(one.arguments)
        for one in condition
        if one.opcode == "constant" and re.fullmatch(r"\d+", one.arguments)
    }
    for one in condition:
        below = one.opcode == "compare" and one.attribute("direction") == "LT"
        if below and one.operands[-1] in limits:
            return max(limits[one.operands[-1]], 1)
    # Some backends compare inside a fusion; the only constant is then the bound.
    return max(next(iter(limits.values())), 1) if len(limits) == 1 else 1


def branches(one: Instruction) -> list[str]:
    """The computations that a conditional chooses from; of a boolean one false comes first."""
    listed = one.attribute("branch_computations")
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed)
    return [_name(one, "false_computation"), _name(one, "true_computation")]


def _name(one: Instruction, attribute: str) -> str:
    return one.attribute(attribute).lstrip("%")

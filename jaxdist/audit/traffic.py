"""Every collective of a compiled program: its bytes, its partners, and what runs beside it."""

import re
from typing import NamedTuple

from jaxdist.audit import hlo

KINDS = {
    name.replace("_", "-"): name
    for name in (
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "collective_permute",
        "collective_broadcast",
    )
} | {"ragged-all-to-all": "all_to_all"}
# What a schedule counts as work beside a message.
WORK = ("fusion", "dot", "convolution", "custom-call", "while", "conditional", "call")


class Transfer(NamedTuple):
    """One collective of one compiled step, as one device sees it.

    Attributes:
      kind: all_reduce, all_gather, reduce_scatter, all_to_all, collective_permute, ...
      dtype: of its first operand, as HLO writes it.
      bytes: of all its operands: what the algorithm hands over, once.
      sent: bytes that leave a device: those of a permute; of the others, over a ring. As many come in.
      partners: for a permute the pairs (from, to), else the size of a group and how many there are.
      asynchronous: whether it is started and waited for in two places.
      hidden_operations: compute operations scheduled between the two.
      hidden_cycles: XLA's estimate of their cycles (TPU only; 0 elsewhere).
      branch: the branches of conditionals it sits in, outermost first.
      across: whether it goes from one slice of a TPU to another, over the data-centre network.
      times: how often a step runs it (loops multiplied).
      name: the JAX operation it comes from.
    """

    kind: str
    dtype: str
    bytes: int
    sent: int
    partners: tuple[tuple[int, ...], ...]
    asynchronous: bool
    hidden_operations: int
    hidden_cycles: int
    branch: tuple[str, ...]
    times: int
    across: bool
    name: str


def transfers(program: hlo.Program) -> list[Transfer]:
    """Every collective of a compiled program, in the order of its schedule.

    It knows plain ones, pairs of start and done, those wrapped in an asynchronous call or fusion, those
    that a TPU spreads over a chain of fusions with compute in them, and the sends by which XLA crosses
    from one slice of a TPU to another.
    """
    found: list[Transfer] = []
    owners = {id(block): name for name, block in program.computations.items()}
    fusions = {
        one.attribute("calls").lstrip("%"): one
        for block in program.computations.values()
        for one in block
        if one.opcode == "fusion"
    }
    chains: dict[tuple[str, ...], int] = {}
    for visit in hlo.walk(program):
        one = visit.instruction
        kind = KINDS.get(one.opcode.removesuffix(hlo.START))
        if one.opcode == "send":
            kind = _across_slices(one)
        if not kind:
            continue
        chain = re.search(r'chain_id="(\d+)"', one.rest)
        link = (kind, chain[1], *visit.branch) if chain else ()
        if link in chains:  # one more piece of a collective that was seen
            piece = fusions.get(owners[id(visit.block)])
            if piece and hlo.DONE not in piece.name:
                found[chains[link]] = _with_piece(found[chains[link]], piece.cycles)
            continue
        if chain:
            chains[link] = len(found)
        operands = [s for name in one.operands for s in program.shapes.get(name, ())]
        if one.opcode == "send":
            operands = operands[:1]  # the others are tokens
        size = sum(shape.bytes for shape in operands)
        groups = partners(one)
        began = (visit.block, visit.place)
        wrapped = visit.wrapper is not None
        split = bool(chain) or wrapped or one.opcode.endswith(hlo.START) or one.opcode == "send"
        hidden = _hidden(*(visit.wrapper or began)) if split and not chain else (0, 0)
        found.append(
            Transfer(
                kind,
                operands[0].dtype if operands else "",
                size,
                _sent(kind, size, groups),
                groups,
                split,
                *hidden,
                visit.branch,
                visit.times,
                one.opcode == "send",
                next(iter(re.findall(r'op_name="([^"]*)"', one.rest)), ""),
            )
        )
    return found


def _with_piece(one: Transfer, cycles: int) -> Transfer:
    """A transfer with one more fusion that computes while it is under way."""
    return one._replace(
        hidden_operations=one.hidden_operations + 1, hidden_cycles=one.hidden_cycles + cycles
    )


def _across_slices(send: hlo.Instruction) -> str | None:
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.rest)
    if not kind:
        return None
    return {"ONE_TO_ONE": "collective_permute"}.get(kind[1], kind[1].lower())


def partners(one: hlo.Instruction) -> tuple[tuple[int, ...], ...]:
    """Who exchanges with whom: pairs of a permute, else (size of a group, number of groups).

    Groups are written by XLA as lists, as `[groups,size]<=[...]`, or by the axes of a mesh.
    """
    pairs = one.attribute("source_target_pairs")
    if pairs:
        return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs))
    text = one.attribute("replica_groups")
    iota = re.match(r"\[(\d+),(\d+)\]<=", text)
    if iota:
        return ((int(iota[2]), int(iota[1])),)
    mesh = re.match(r"@?mesh\w*\[(.*?)\]\s*\{(.*?)\}", text)
    if mesh:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        size, whole = 1, 1
        for name, n in sizes.items():
            whole *= n
            size *= n if f"'{name}'" in mesh[2] else 1
        return ((size, whole // size),)
    lists = [group.split(",") for group in re.findall(r"\{([\d,]+)\}", text)]
    return ((len(lists[0]), len(lists)),) if lists else ()


def _sent(kind: str, size: int, groups: tuple[tuple[int, ...], ...]) -> int:
    if kind == "collective_permute" or not groups:
        return size
    n = groups[0][0]
    if kind == "all_reduce":
        return 2 * (n - 1) * size // n
    return (n - 1) * size if kind == "all_gather" else (n - 1) * size // n


def _hidden(block: list[hlo.Instruction], place: int) -> tuple[int, int]:
    """Operations, and XLA's cycles, between a start and the done that takes it."""
    name, operations, cycles = block[place].name, 0, 0
    for one in block[place + 1 :]:
        if name in one.operands and one.opcode.endswith(hlo.DONE):
            return operations, cycles
        if one.opcode in WORK:
            operations += 1
            cycles += one.cycles
    return 0, 0

"""What a lowered step sends, read from its StableHLO: the proof that is not the code's own claim."""

import itertools
from typing import Any, NamedTuple

import numpy as np

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute")


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: all_reduce, all_gather, reduce_scatter, all_to_all or collective_permute.
      dtype: of its operand, as StableHLO writes it (f32, bf16, ui8).
      shape: of its operand on one device.
      bytes: of its operand on one device: what the device hands to the network.
      branch: the branches it sits in, outermost first, such as ("case 2",); () if it always runs.
      conditional: which of the program's outermost conditionals it sits in, counted in program order
        from 0 over those that communicate; None if it always runs.
      loop: whether it sits in a loop, whose trips it then runs.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    branch: tuple[str, ...]
    conditional: int | None
    loop: bool


def collectives(lowered: Any) -> list[Collective]:
    """Every collective of a lowered program, in program order.

    Args:
      lowered: what `jax.jit(f).lower(...)` returns, for example `trainer.compiled.lower(state, batch)`.

    Returns:
      A list of `Collective`; a function that is called twice counts twice.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.gossip(optax.sgd(0.1), jd.topology.ring(8)), loss, workers=8)
      >>> state = trainer.init(jnp.zeros(5))
      >>> found = jd.audit.collectives(trainer.compiled.lower(state, jnp.ones((8, 5))))
      >>> [(c.kind, c.bytes) for c in found if c.kind == "collective_permute"]
      [('collective_permute', 20), ('collective_permute', 20)]
    """
    module = lowered.compiler_ir(dialect="stablehlo")
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations}
    found: list[Collective] = []
    conditionals: dict[
        int, int
    ] = {}  # the number of a visit of an outermost conditional -> its place
    visits = itertools.count()

    def visit(op: Any, branch: tuple[str, ...], outermost: int | None, loop: bool) -> None:
        name = op.operation.name
        if name == "func.call":
            visit(functions[op.attributes["callee"].value], branch, outermost, loop)
            return
        kind = name.removeprefix("stablehlo.")
        if kind in KINDS and name != kind:
            place = None
            if outermost is not None:
                place = conditionals.setdefault(outermost, len(conditionals))
            found.extend(_collective(kind, x, branch, place, loop) for x in op.operands)
            return
        if kind in ("case", "if") and outermost is None:
            outermost = next(visits)
        for number, region in enumerate(op.operation.regions):
            inside = (*branch, f"{kind} {number}") if kind in ("case", "if") else branch
            for block in region.blocks:
                for inner in block.operations:
                    visit(inner, inside, outermost, loop or kind == "while")

    visit(functions["main"], (), None, False)
    return found


def _collective(
    kind: str, operand: Any, branch: tuple[str, ...], conditional: int | None, loop: bool
) -> Collective:
    shape = tuple(operand.type.shape)
    dtype = str(operand.type.element_type)
    bits = int("".join(c for c in dtype.split("E")[0] if c.isdigit()) or 1)
    size = -(-int(np.prod(shape)) * bits // 8)
    return Collective(kind, dtype, shape, size, branch, conditional, loop)


def bytes_by_branch(found: list[Collective]) -> dict[tuple[str, ...], int]:
    """Bytes handed to the network, for each branch of the program apart; () is what always runs."""
    sums: dict[tuple[str, ...], int] = {}
    for one in found:
        sums[one.branch] = sums.get(one.branch, 0) + one.bytes
    return sums

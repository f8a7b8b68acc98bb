"""What a lowered step sends, read from its StableHLO: the proof that is not the code's own claim."""

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
      loop: whether it sits in a loop, whose trips it then runs.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    branch: tuple[str, ...]
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

    def visit(op: Any, branch: tuple[str, ...], loop: bool) -> None:
        name = op.operation.name
        if name == "func.call":
            visit(functions[op.attributes["callee"].value], branch, loop)
            return
        kind = name.removeprefix("stablehlo.")
        if kind in KINDS and name != kind:
            found.extend(_collective(kind, operand, branch, loop) for operand in op.operands)
            return
        for number, region in enumerate(op.operation.regions):
            inside = (*branch, f"{kind} {number}") if kind in ("case", "if") else branch
            for block in region.blocks:
                for inner in block.operations:
                    visit(inner, inside, loop or kind == "while")

    visit(functions["main"], (), False)
    return found


def _collective(kind: str, operand: Any, branch: tuple[str, ...], loop: bool) -> Collective:
    shape = tuple(operand.type.shape)
    dtype = str(operand.type.element_type)
    bits = int("".join(c for c in dtype.split("E")[0] if c.isdigit()) or 1)
    return Collective(kind, dtype, shape, -(-int(np.prod(shape)) * bits // 8), branch, loop)


def bytes_by_branch(found: list[Collective]) -> dict[tuple[str, ...], int]:
    """Bytes handed to the network, for each branch of the program apart; () is what always runs."""
    sums: dict[tuple[str, ...], int] = {}
    for one in found:
        sums[one.branch] = sums.get(one.branch, 0) + one.bytes
    return sums

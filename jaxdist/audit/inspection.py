"""What one compiled step sends, computes and needs, read from the program that runs."""

import time
from typing import Any, NamedTuple

from jaxdist.audit import hlo
from jaxdist.audit.flops import flops
from jaxdist.audit.traffic import Transfer, transfers
from jaxdist.errors import Refused


class Inspection(NamedTuple):
    """One compiled step on one device.

    Attributes:
      transfers: its collectives.
      flops: of its matrix products and convolutions.
      argument_bytes: what it is given (state and batch).
      alias_bytes: of that, what it may overwrite: the donated state.
      temporary_bytes: what it needs besides.
      peak_bytes: the most that is alive at once.
      compile_seconds: how long compiling took; None: it was compiled before.
    """

    transfers: list[Transfer]
    flops: int
    argument_bytes: int
    alias_bytes: int
    temporary_bytes: int
    peak_bytes: int
    compile_seconds: float | None

    def sent(self, branch: tuple[str, ...] = ()) -> int:
        """Bytes that leave a device in a step that takes this branch, those of every step included.

        As many come in: in a permute and in a ring every device hears as much as it says.
        """
        return sum(
            one.sent * one.times
            for one in self.transfers
            if one.branch in ((), branch) or (branch and one.branch[: len(branch)] == branch)
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            **self._asdict(),
            "transfers": [{**one._asdict(), "received": one.sent} for one in self.transfers],
        }


def inspect(program: Any) -> Inspection:
    """Reads a compiled program: every collective, its operations, its memory.

    Args:
      program: `jax.jit(f).lower(...)`, which is compiled here, or what its `.compile()` returned; any
        function, with or without jaxdist, for the host, a TPU or a GPU, there or not.

    Returns:
      An `Inspection`. Print `jd.audit.table(inspection)` to look at it.

    Raises:
      Refused: it does not fit into the memory of the device; says how much it needs.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdist as jd
      >>> lowered = jax.jit(lambda a, b: a @ b).lower(jnp.ones((4, 8)), jnp.ones((8, 2)))
      >>> jd.audit.inspect(lowered).flops
      128
    """
    seconds = None
    if not hasattr(program, "as_text") or hasattr(program, "compile"):
        began = time.monotonic()
        program = _compile(program)
        seconds = time.monotonic() - began
    read = hlo.parse(program.as_text())
    memory = program.memory_analysis()
    return Inspection(
        transfers(read),
        flops(read),
        memory.argument_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        seconds,
    )


def _compile(lowered: Any) -> Any:
    try:
        return lowered.compile()
    except Exception as error:  # jaxlib's own class, which has no public name
        said = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        raise Refused(
            f"the step does not fit into the target's memory: {said[said.index('RESOURCE') :][:300]}; "
            "shard parameters over an fsdp axis, take a smaller batch, or accumulate"
        ) from error


def table(inspection: Inspection) -> str:
    """An inspection as lines to read: equal collectives counted together."""
    head = ("collective", "type", "bytes", "sent", "with", "overlaps", "branch", "count")
    counted: dict[tuple[str, ...], int] = {}
    for one in inspection.transfers:
        row = (
            one.kind,
            one.dtype,
            f"{one.bytes:,}",
            f"{one.sent:,}",
            _with(one),
            _overlap(one),
            ", ".join(one.branch) or "always",
        )
        counted[row] = counted.get(row, 0) + one.times
    rows = [head, *((*row, str(count)) for row, count in counted.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    branches = sorted({one.branch for one in inspection.transfers if one.branch})
    facts = {
        "bytes out = in per device": ", ".join(
            [f"{inspection.sent():,} in every step"]
            + [f"{inspection.sent(b):,} in {', '.join(b)}" for b in branches]
        ),
        "matrix FLOPs per device": f"{inspection.flops:,}",
        "arguments (state, batch)": f"{inspection.argument_bytes:,} bytes",
        "  of which donated": f"{inspection.alias_bytes:,} bytes",
        "temporaries": f"{inspection.temporary_bytes:,} bytes",
        "peak": f"{inspection.peak_bytes:,} bytes",
    }
    if inspection.compile_seconds is not None:
        facts["compiled in"] = f"{inspection.compile_seconds:.1f} s"
    lines += ["", *(f"{name:26}{value}" for name, value in facts.items())]
    return "\n".join(line.rstrip() for line in lines)


def _with(one: Transfer) -> str:
    if one.across:
        return "other slices"
    if one.kind != "collective_permute":
        return f"{one.partners[0][1]} x {one.partners[0][0]} devices" if one.partners else "all"
    count = len(one.partners)
    hops = {(b - a) % count for a, b in one.partners} if count else set()
    return f"hop {hops.pop()}" if len(hops) == 1 else f"{count} pairs"


def _overlap(one: Transfer) -> str:
    if not one.asynchronous:
        return "no (synchronous)"
    cycles = f", {one.hidden_cycles:,} cycles" if one.hidden_cycles else ""
    return f"{one.hidden_operations} operations{cycles}"

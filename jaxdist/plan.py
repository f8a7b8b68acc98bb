"""Predicted step times at scale, from a model that is stated: arithmetic, links, who waits for whom.

A prediction and never a measurement. With F the floating-point operations of a worker's gradient, k its
chips, u the part of their peak that is assumed to be reached,

    compute  = F / (k u peak)                 exchange = the bytes that the method declares, over links

and a step takes their sum, or the longer of the two where the exchange needs nothing that the step
computes and its rounds do not vary. Chips of a slice stand in a torus, whose links all carry the same
load; slices are joined by the data-centre network, to which every chip has its own part:

    all-reduce of n bytes     2 (c - 1)/c n / (links B) in the slice of c workers, then over s slices the
                              faster of ring and tree of `jaxdist.network`, n / c on each chip
    a message to a neighbor   h n / B, h the messages that share its links: a shift by h passes h chips;
                              n / B of the other network where any of them leaves the slice

Not in the model: stragglers, input, host, memory, routing around failed links, what chips of one worker
say to each other. `docs/plan.md` has its errors against published tables.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxdist import audit, network, topology
from jaxdist.algorithms.all_reduce import all_reduce
from jaxdist.algorithms.base import Algorithm, Params, bytes_sent
from jaxdist.algorithms.diloco import diloco
from jaxdist.algorithms.gossip import gossip
from jaxdist.algorithms.local_sgd import local_sgd
from jaxdist.algorithms.push_sum import push_sum
from jaxdist.algorithms.sharded_all_reduce import sharded_all_reduce
from jaxdist.errors import Refused
from jaxdist.network import PRESETS, Network
from jaxdist.waiting import Meeting

UTILISATION = 0.4  # assumed, of the peak: between what small and large models are reported to reach


class Chip(NamedTuple):
    """What is known of a chip and of its links.

    Attributes:
      peak: floating-point operations a second, bfloat16, dense.
      links: how many links it has into its slice; 0: a switch, to which it has one.
      inside: one link, one direction.
      across: what it has of the network between slices.
      source: where these come from.
    """

    peak: float
    links: int
    inside: Network
    across: Network
    source: str


_TPU = "specification, cloud.google.com/tpu/docs"
CHIPS: dict[str, Chip] = {
    "v5e": Chip(197e12, 4, PRESETS["tpu_v5e_ici"], PRESETS["tpu_v5e_dcn"], f"{_TPU}/v5e"),
    "v5p": Chip(459e12, 6, PRESETS["tpu_v5p_ici"], PRESETS["tpu_v5p_dcn"], f"{_TPU}/v5p"),
    "h100": Chip(
        989e12,
        0,
        PRESETS["nvlink4"],
        PRESETS["infiniband_ndr"],
        "specification, nvidia.com H100 SXM",
    ),
}


class Layout(NamedTuple):
    """Workers on slices.

    Attributes:
      chip: of which kind.
      grid: the workers of one slice, along its axes.
      slices: how many slices.
      chips: chips of one worker.
    """

    chip: Chip
    grid: tuple[int, ...]
    slices: int
    chips: int

    @property
    def workers_in_slice(self) -> int:
        """How many workers a slice holds."""
        return math.prod(self.grid)


class Prediction(NamedTuple):
    """What the model says of a method: means over the steps of its period.

    Attributes:
      compute_seconds: of the gradient.
      exchange_seconds: of what is sent, hidden or not.
      step_seconds: of both.
      bytes: out of one worker.
    """

    compute_seconds: float
    exchange_seconds: float
    step_seconds: float
    bytes: float

    @property
    def efficiency(self) -> float:
        """The part of the time in which gradients are computed: weak scaling against one worker."""
        return self.compute_seconds / self.step_seconds


# Of each what is usual; `jaxdist plan` adds the method of the config.
METHODS: dict[str, Callable[[int], Algorithm]] = {
    "all_reduce": lambda workers: all_reduce(optax.sgd(0.1)),
    "sharded_all_reduce": lambda workers: sharded_all_reduce(optax.sgd(0.1)),
    "gossip, ring": lambda workers: gossip(optax.sgd(0.1), topology.ring(workers)),
    "gossip, ring, combine_while_adapt": lambda workers: gossip(
        optax.sgd(0.1), topology.ring(workers), order="combine_while_adapt"
    ),
    "gossip, one_peer_exponential": lambda workers: gossip(
        optax.sgd(0.1), topology.one_peer_exponential(workers)
    ),
    "push_sum, exponential, delay 1": lambda workers: push_sum(
        optax.sgd(0.1), topology.exponential(workers), delay=1
    ),
    "local_sgd, period 8": lambda workers: local_sgd(optax.sgd(0.1), period=8),
    "diloco, period 100": lambda workers: diloco(optax.sgd(0.1), optax.sgd(0.7), period=100),
}


def lay_out(target: str, workers: int, *, chips: int = 1) -> Layout:
    """Puts workers on as few slices as hold them.

    Args:
      target: the chip and the shape of a whole slice: `v5e:16x16`, `v5p:16x20x28`, `h100:8` (a host).
      workers: how many.
      chips: of one worker.

    Returns:
      A `Layout`.

    Raises:
      Refused: an unknown target; workers that do not fill slices evenly.

    Example:
      >>> lay_out("v5e:16x16", 64).grid, lay_out("v5e:16x16", 1024).slices
      ((8, 8), 4)
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", target)
    if not found or found[1] not in CHIPS:
        raise Refused(
            f"there is no target {target!r} to plan for; write the chip and the shape of a whole slice, one "
            f"of {', '.join(CHIPS)}: v5e:16x16, v5p:16x20x28, h100:8"
        )
    shape = [int(n) for n in found[2].split("x")]
    most = math.prod(shape) // chips
    if chips < 1 or math.prod(shape) % chips:
        raise Refused(
            f"chips-per-worker={chips} does not divide the {math.prod(shape)} chips of {target}; write "
            f"{math.gcd(chips, math.prod(shape)) or 1}"
        )
    if workers < 1 or (workers > most and workers % most):
        raise Refused(
            f"workers={workers} do not fill slices of {target}, which hold {most} workers each; write "
            f"{max(1, -(-workers // most)) * most}"
        )
    return Layout(
        CHIPS[found[1]], _grid(min(workers, most), len(shape)), max(1, workers // most), chips
    )


def _grid(count: int, axes: int) -> tuple[int, ...]:
    """So many places along so many axes, as near to a cube as divisors allow."""
    if axes == 1:
        return (count,)
    side = max(d for d in range(1, count + 1) if count % d == 0 and d <= count ** (1 / axes) + 1e-9)
    return (side, *_grid(count // side, axes - 1))


def all_reduce_seconds(layout: Layout, size_bytes: float) -> float:
    """Seconds of an all-reduce of so many bytes of every worker.

    >>> seconds = all_reduce_seconds(lay_out("v5e:16x16", 256), 1e9)
    >>> round(seconds, 4)  # 2 * 255 / 256 * 1 GB over four links of 50 GB/s, and the hops
    0.01
    """
    inside, count = layout.chip.inside, layout.workers_in_slice
    each = size_bytes / layout.chips
    bandwidth = max(1, layout.chip.links) * inside.bytes_per_second
    hops = 2 * sum(n - 1 for n in layout.grid)
    seconds = 2 * (count - 1) / count * each / bandwidth + hops * inside.latency_seconds
    return seconds + network.all_reduce(layout.chip.across, each / count, layout.slices)


def neighbors_seconds(layout: Layout, listens: Sequence[Sequence[int]], size_bytes: float) -> float:
    """Seconds until everybody has heard from all those it listens to, so many bytes from each."""
    pairs = np.array([(j, i) for i, others in enumerate(listens) for j in others])
    each = size_bytes / layout.chips
    home, place = np.divmod(pairs, layout.workers_in_slice)
    leaves = home[:, 0] != home[:, 1]
    seconds = 0.0
    if leaves.any():
        busiest = max(np.bincount(pairs[leaves, side]).max() for side in (0, 1))
        seconds = network.message(layout.chip.across, busiest * each)
    if leaves.all():
        return seconds
    here = place[~leaves]
    if not layout.chip.links:
        busiest = max(np.bincount(pairs[~leaves, side]).max() for side in (0, 1))
        return max(seconds, network.message(layout.chip.inside, busiest * each))
    load, hops = 0.0, 0
    total = layout.workers_in_slice * layout.slices
    side = layout.chips ** (1 / len(layout.grid))  # a neighbor of many chips is that far away
    for axis, length in enumerate(layout.grid):
        at = np.stack(np.unravel_index(here, layout.grid), -1)[..., axis]
        step = (at[:, 1] - at[:, 0] + length // 2) % length - length // 2
        for way in (step.clip(0), (-step).clip(0)):
            load, hops = max(load, side * way.sum() / total), max(hops, int(side * way.max()))
    inside = layout.chip.inside
    return max(seconds, hops * inside.latency_seconds + load * each / inside.bytes_per_second)


def predict(
    algorithm: Algorithm,
    params: Params,
    layout: Layout,
    *,
    flops: float,
    utilisation: float = UTILISATION,
    overlap: bool = False,
) -> Prediction:
    """What a step of a method takes, on average, once it has started.

    Args:
      algorithm: a method that says what it sends and whom it waits for.
      params: arrays or shapes.
      layout: where its workers are.
      flops: of one worker's gradient (`gradient_flops`).
      utilisation: the part of the peak that is reached while computing; assumed.
      overlap: whether each kind of step is compiled as a whole (`jd.execute(..., overlap=True)`).

    Returns:
      A `Prediction`.

    Raises:
      Refused: a method that does not say whom it waits for.

    Example:
      >>> import jax.numpy as jnp
      >>> params, layout = jnp.zeros(10**6), lay_out("v5e:16x16", 1024)
      >>> found = predict(METHODS["all_reduce"](1024), params, layout, flops=1e12)
      >>> f"{1e3 * found.compute_seconds:.1f} + {1e3 * found.exchange_seconds:.1f} ms"
      '12.7 + 0.3 ms'
    """
    waits = algorithm.waits
    if waits is None or algorithm.sends is None:
        raise Refused(
            "the method does not say whom its workers wait for, or what they send: one with a clock is "
            "simulated, not planned; write a synchronous one, for example jd.all_reduce(rule)"
        )
    workers = layout.workers_in_slice * layout.slices
    compute = flops / (layout.chips * utilisation * layout.chip.peak)
    known: dict[Any, float] = {}

    def exchange(meeting: Meeting | None, sent: int) -> float:
        if meeting is None or workers == 1:
            return 0.0
        key = meeting.listens, sent
        if key not in known:
            known[key] = _meeting_seconds(layout, meeting, sent)
        return known[key]

    steps = range(waits.start, waits.start + waits.period)
    sent = [bytes_sent(algorithm, params, t, workers=workers) for t in steps]
    exchanges = [
        exchange(waits.meeting(t, workers), size) for t, size in zip(steps, sent, strict=True)
    ]
    # XLA runs nothing beside a branch, unless the gradient is computed inside it.
    hidden = waits.overlaps and (overlap or algorithm.branches is None)
    taken = [max(compute, one) if hidden else compute + one for one in exchanges]
    return Prediction(compute, *(float(np.mean(x)) for x in (exchanges, taken, sent)))


def _meeting_seconds(layout: Layout, meeting: Meeting, sent: int) -> float:
    if meeting.listens is None:
        return all_reduce_seconds(layout, sent)
    heard = np.bincount([j for others in meeting.listens for j in others])
    degree = max(max(map(len, meeting.listens)), int(heard.max()))
    return neighbors_seconds(layout, meeting.listens, sent / degree)


def gradient_flops(loss_fn: Callable[..., Any], params: Params, examples: Any) -> int:
    """Matrix operations of one worker's gradient, read from the compiled program.

    Args:
      loss_fn: `(params, batch, key) -> (loss, aux)`.
      params: arrays or shapes.
      examples: one worker's batch, arrays or shapes.

    Returns:
      Floating-point operations of matrix products and convolutions.
    """

    def loss(params: Params, examples: Any) -> Any:
        return loss_fn(params, examples, jax.random.key(0))

    lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, examples)
    return audit.inspect(lowered).flops


class Row(NamedTuple):
    """One line of a plan: a method, a number of workers, what is predicted."""

    method: str
    workers: int
    prediction: Prediction


def table(rows: Sequence[Row]) -> str:
    """A plan as lines to read.

    >>> row = Row("all_reduce", 64, Prediction(0.010, 0.001, 0.011, 4e6))
    >>> print(table([row]))
    method      workers  step        exchange    bytes out  efficiency
    all_reduce       64  11.0000 ms  1.0000 ms   4,000,000         91%
    """
    head = ("method", "workers", "step", "exchange", "bytes out", "efficiency")
    lines: list[tuple[str, ...]] = [head]
    for method, workers, found in rows:
        times = (f"{1e3 * t:.4f} ms" for t in (found.step_seconds, found.exchange_seconds))
        lines.append(
            (method, str(workers), *times, f"{found.bytes:,.0f}", f"{found.efficiency:.0%}")
        )
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = {0, 2, 3}
    return "\n".join(
        "  ".join(
            cell.ljust(width[i]) if i in left else cell.rjust(width[i])
            for i, cell in enumerate(line)
        )
        for line in lines
    )

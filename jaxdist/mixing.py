"""One weighted exchange with the neighbours: every worker's arrays become a weighted mean.

Arrays travel in their own precision and are weighted in at least float32. They are put into buckets
before the round is chosen, so that the program does not grow with leaves x rounds.
"""

from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import buckets, faults, worker
from jaxdist.compensated import Sum, nothing, of_terms, split, steady, times
from jaxdist.compress.base import Compressor, decode_leaves, encode_leaves
from jaxdist.errors import Refused
from jaxdist.topology import Round, Topology
from jaxdist.topology.connectivity import components

PyTree = Any
Factor = float | jax.Array
Keeps = Literal["receiver", "sender"]

# Every different round is a branch of the program: a thousand of them compiled for minutes.
MOST_BRANCHES = 128


def mix(
    tree: PyTree,
    topology: Topology,
    step: jax.Array,
    *,
    alive: jax.Array | None = None,
    dropped: jax.Array | None = None,
    keeps: Keeps | None = None,
    branch: int | None = None,
) -> PyTree:
    """Replaces every worker's arrays by the weighted mean over those it listens to at this step.

        x_i <- sum_j W(step)_ij x_j

    Where a message does not arrive, its weight goes to somebody's own value: to the receiver's, so that
    its weights still sum to one, or to the sender's, so that nothing is lost from the sum of all. Under
    a symmetric matrix a link is lost both ways, both come to the same, and the mean over those who
    are there is preserved. Who is away keeps its arrays.

    Args:
      tree: this worker's arrays, floating point.
      topology: who listens to whom; its size is the number of workers.
      step: the shared step, int32; it selects the round of a topology that varies.
      alive: bool `[workers]`, the same for every worker: who takes part. None: all do, or what
        `jd.faulty` says.
      dropped: bool `[workers, workers]`, row = receiver, the same for every worker: which messages are
        lost. None: none is, or what `jd.faulty` says.
      keeps: to whom the weight of a lost message returns. None: to the sender where only the columns
        of the matrix sum to one, else to the receiver.
      branch: which of `distinct_rounds(topology)` it is, where that is known while tracing: then
        only its exchange is in the program. None: `step` selects it.

    Returns:
      A pytree like `tree`, this worker's own.

    Communication:
      Every leaf once per permutation of the round, in the leaf's own dtype: at most
      `topology.degree + 1` of them, the identity among them, which costs nothing. Where there are
      more than 128 different rounds, every leaf once in one all-gather instead: the program would
      otherwise have a branch for each. That is for simulations; on a network give fewer rounds.

    Raises:
      Refused: the topology connects another number of workers than there are; workers that never
        come back and without whom the others fall into groups.
    """
    now = faults.current()
    if alive is not None or dropped is not None:
        now = faults.Masks(alive, dropped)

    def mixed(arrays: list[jax.Array], factors: list[Factor], given: list[Factor]) -> jax.Array:
        return _weighted(arrays, factors, given).astype(arrays[0].dtype)

    keeps = keeps or ("sender" if topology.stochastic == "column" else "receiver")
    return _exchange(tree, topology, step, mixed, lambda one: one.own, keeps, now, branch)


def change(tree: PyTree, topology: Topology, step: jax.Array) -> Sum:
    """What one `mix` would add to every worker's arrays, so that over all workers it cancels.

        d_i = sum_j W(step)_ij x_j - x_i

    For methods that add up what their exchanges did. Every number that somebody gets somebody else
    gives away, the same to the last bit, and they are added up with what rounding drops: the changes of
    all workers sum to zero in floating point too, but for 2^-48 of them. `compensated.value` makes one
    number of each, where nothing is added up. What is not received is not given away; but on a directed
    graph whose rows sum to one a receiver makes up for what is lost, and then nothing cancels.

    Args:
      tree: this worker's arrays, floating point.
      topology: as for `mix`, its columns summing to one.
      step: as for `mix`.

    Returns:
      A `Sum` of pytrees like `tree` in at least float32, this worker's own.

    Communication:
      As `mix`: in the leaf's own dtype.
    """

    now = faults.current()
    whole = now.alive is None and now.dropped is None
    # Where messages are lost and there is no weight to divide by, a mean has to stay a mean.
    alike = topology.symmetric or not (whole or topology.stochastic == "column")

    def changed(arrays: list[jax.Array], factors: list[Factor], given: list[Factor]) -> jax.Array:
        return jnp.stack(_flow(arrays, factors[1:], given, alike=alike))

    both = _exchange(tree, topology, step, changed, lambda one: np.zeros(one.size), None, now)
    return Sum(*(jax.tree.map(lambda x, i=i: x[i], both) for i in range(2)))


def arriving(
    tree: PyTree, topology: Topology, step: jax.Array, *, branch: int | None = None
) -> PyTree:
    """The part of `mix` that comes from others, in at least float32.

        x_i <- sum_(j != i) W(step)_ij x_j

    Args:
      tree: this worker's arrays, floating point.
      topology: as for `mix`.
      step: as for `mix`.
      branch: as for `mix`.

    Returns:
      A pytree like `tree` in at least float32, this worker's own.

    Communication:
      As `mix`: in the leaf's own dtype.
    """
    faults.refuse_any("a delay keeps what is sent before it is known to be lost", "write delay=0")
    nothing = faults.Masks()
    return _exchange(
        tree, topology, step, _weighted, lambda one: np.zeros(one.size), None, nothing, branch
    )


def check_size(topology: Topology) -> None:
    """Refuses, while tracing, a topology for another number of workers than there are."""
    if topology.size != worker.count():
        raise Refused(
            f"{topology.name} connects {topology.size} workers and the run has {worker.count()}; "
            f"give a topology of size {worker.count()}, or workers={topology.size} to jd.execute"
        )


def pass_on(tree: PyTree, source: np.ndarray) -> PyTree:
    """Worker `i` gets the arrays of worker `source[i]`, the small ones in one message.

    Args:
      tree: this worker's arrays.
      source: a full permutation, known while tracing.

    Returns:
      A pytree like `tree`, this worker's own.
    """
    buffers, restore = buckets.pack(tree)
    return restore(worker.permute(buffers, source))


def change_compressed(
    tree: PyTree, topology: Topology, step: jax.Array, *, compressor: Compressor, key: jax.Array
) -> tuple[Sum, PyTree]:
    """As `change`, of what the payloads of this worker and its neighbors stand for.

        sum_j W(step)_ij C(x_j) - C(x_i), and C(x_i)

    Args:
      tree: this worker's arrays, floating point. Every leaf is compressed by itself.
      topology: who listens to whom; its columns sum to one.
      step: the shared step; it selects the round.
      compressor: what travels.
      key: the same for every worker; draws are each worker's own, but for compressors whose payloads
        may be summed, which draw alike.

    Returns:
      A `Sum` of pytrees like `tree`, and one like `tree`, this worker's own.

    Communication:
      Payloads only: compressor.bytes(tree) for each permutation of the round that moves anything.
      Small ones travel together.
    """
    faults.refuse_any(
        "a lost payload would spoil what is remembered of others",
        "leave the compressor out, or write jd.gossip(rule, topology), which sends whole arrays",
    )
    check_size(topology)
    private = key if compressor.route == "sum" else jax.random.fold_in(key, worker.index())
    payloads = encode_leaves(compressor, private, tree)

    def decoded(payloads: PyTree) -> PyTree:
        return jax.tree.map(steady, decode_leaves(compressor, payloads, tree))

    own = decoded(payloads)
    if topology.size == 1:
        return nothing(own), own
    buffers, restore = buckets.pack(payloads)
    rounds = [topology.permutations(t) for t in range(topology.period)]
    most = max(len(one.sources) for one in rounds)

    def received(sources: np.ndarray) -> Callable[[list[jax.Array]], list[list[jax.Array]]]:
        def of(buffers: list[jax.Array]) -> list[list[jax.Array]]:
            arrived = [worker.permute(buffers, source) for source in sources[1:]]
            idle = [[jnp.zeros_like(b) for b in buffers]] * (most - len(sources))
            return worker.vary(arrived + idle)

        return of

    # Only permutes are inside the conditional; what arrives is decoded once, whatever the round.
    branches = [received(one.sources) for one in rounds]
    now = step % len(rounds)
    arrived = branches[0](buffers) if len(rounds) == 1 else lax.switch(now, branches, buffers)
    gets, gives = np.zeros((2, len(rounds), most, topology.size))
    for t, one in enumerate(rounds):
        gets[t, : len(one.weights)] = one.weights
        gives[t, : len(one.weights)] = _given(one.sources, one.weights)
    mine = [jnp.asarray(table)[now, 1:, worker.index()] for table in (gets, gives)]
    terms = [own, *(decoded(restore(b)) for b in arrived)]
    return split(lambda *x: _flow(list(x), *map(list, mine), alike=topology.symmetric), *terms), own


def arrives(topology: Topology, source: np.ndarray) -> jax.Array:
    """Whether what worker `source[i]` hands to worker `i`, this one, reaches it at this step."""
    now = faults.current()
    _check_survivors(topology, now.gone)
    faults.refuse_away(
        "everybody hands on what comes from behind it, and counts all",
        "write jd.gossip(rule, topology), or faults that lose messages only: "
        "jd.faults.link_loss(0.01, seed=0)",
    )
    me = worker.index()
    return _up(now, topology, me, jnp.asarray(source)[me])


def gathers(topology: Topology) -> bool:
    """Whether a topology has so many rounds that they are mixed out of one all-gather."""
    return len(distinct_rounds(topology)[0]) > MOST_BRANCHES


def _exchange(
    tree: PyTree,
    topology: Topology,
    step: jax.Array,
    combine: Callable[[list[jax.Array], list[Factor], list[Factor]], jax.Array],
    own_weight: Callable[[Round], np.ndarray],
    keeps: Keeps | None,
    now: faults.Masks,
    branch: int | None = None,
) -> PyTree:
    """Sends everybody's arrays along the round and combines what arrives with its factors.

    `combine` also gets with what factor a worker's own arrays arrive at each of the others. `own_weight`
    is the factor of its own for itself; `keeps` says whose it is that grows by the weights of lost
    messages, None: nobody's.
    """
    check_size(topology)
    _check_survivors(topology, now.gone)
    whole = now.alive is None and now.dropped is None
    rounds, place = distinct_rounds(topology)
    buffers, restore = buckets.pack(tree)

    def combined(
        buffers: list[jax.Array],
        received: list[list[jax.Array]],
        factors: list[Factor],
        senders: list[jax.Array],
        receivers: list[tuple[jax.Array, Factor]],
    ) -> list[jax.Array]:
        given: list[Factor] = [f for _, f in receivers]
        if not whole:
            me = worker.index()
            ups = [_up(now, topology, me, sender) for sender in senders]
            heard = [_up(now, topology, receiver, me) for receiver, _ in receivers]
            own, *others = factors
            lost = []
            if keeps == "receiver":
                lost = [jnp.where(up, 0.0, f) for up, f in zip(ups, others, strict=True)]
            elif keeps == "sender":
                lost = [jnp.where(up, 0.0, f) for up, f in zip(heard, given, strict=True)]
            others = [jnp.where(up, f, 0.0) for up, f in zip(ups, others, strict=True)]
            given = [*(jnp.where(up, f, 0.0) for up, f in zip(heard, given, strict=True))]
            factors = [reduce(jnp.add, lost, jnp.asarray(own)), *others]
        return [
            combine([own, *others], factors, given)
            for own, *others in zip(buffers, *received, strict=True)
        ]

    def round_of(one: Round) -> Callable[[list[jax.Array]], list[jax.Array]]:
        sources, weights = one.permutations
        targets, given = np.argsort(sources, axis=1), _given(sources, weights)

        def branch(buffers: list[jax.Array]) -> list[jax.Array]:
            # Everything is sent before anything is used, so that XLA may have all of it under way.
            received = [worker.permute(buffers, source) for source in sources[1:]]
            factors = [_factor(row) for row in (own_weight(one), *weights[1:])]
            me = worker.index()
            senders = [jnp.asarray(source)[me] for source in sources[1:]]
            receivers = [
                (jnp.asarray(target)[me], _factor(row))
                for target, row in zip(targets[1:], given[1:], strict=True)
            ]
            return combined(buffers, received, factors, senders, receivers)

        return branch

    if not gathers(topology):
        if branch is not None or len(rounds) == 1:
            return restore(round_of(rounds[branch or 0])(buffers))
        which = jnp.asarray(place)[step % len(place)]
        return restore(lax.switch(which, [round_of(one) for one in rounds], buffers))

    slots = max(len(one.permutations.sources) for one in rounds)
    tables = [_padded(one, own_weight(one), slots) for one in rounds]
    source, weight, target, given = (np.stack(table) for table in zip(*tables, strict=True))
    at, me = jnp.asarray(place)[step % len(place)], worker.index()
    all_buffers = worker.gather(buffers)
    senders = [jnp.asarray(source)[at, slot, me] for slot in range(1, slots)]
    return restore(
        combined(
            buffers,
            [[x[sender] for x in all_buffers] for sender in senders],
            [jnp.asarray(weight)[at, slot, me] for slot in range(slots)],
            senders,
            [
                (jnp.asarray(target)[at, slot, me], jnp.asarray(given)[at, slot, me])
                for slot in range(1, slots)
            ],
        )
    )


@lru_cache(maxsize=64)
def distinct_rounds(topology: Topology) -> tuple[list[Round], np.ndarray]:
    """The different rounds of a topology, and which of them each step of the period takes."""
    known: dict[bytes, int] = {}
    rounds, place = [], []
    for one in topology.rounds:
        parts = (one.receivers, one.senders, one.weights, one.own)
        key = b"".join(part.tobytes() for part in parts)
        if key not in known:
            known[key] = len(rounds)
            rounds.append(one)
        place.append(known[key])
    return rounds, np.array(place, np.int32)


def _padded(one: Round, own: np.ndarray, slots: int) -> tuple[np.ndarray, ...]:
    """Sources, weights, targets and the weights given there, filled up to so many permutations."""
    sources, weights = one.permutations
    idle = slots - len(sources)
    source = np.vstack([sources, np.tile(sources[:1], (idle, 1))])
    weight = np.vstack([own[None], weights[1:], np.zeros((idle, one.size))])
    target = np.argsort(source, axis=1).astype(np.int32)
    return source, weight, target, _given(source, weight)


def _given(sources: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """With what weight a worker's own arrays arrive at whom each permutation takes them to."""
    return np.take_along_axis(weights, np.argsort(sources, axis=1), axis=1)


def _up(now: faults.Masks, topology: Topology, receiver: jax.Array, sender: jax.Array) -> jax.Array:
    """Whether a message between two workers arrives."""
    up = jnp.bool_(True)
    if now.alive is not None:
        up = now.alive[receiver] & now.alive[sender]
    if now.dropped is not None:
        up = up & ~now.dropped[receiver, sender]
        if topology.symmetric:
            up = up & ~now.dropped[sender, receiver]
    return up


def _check_survivors(topology: Topology, gone: frozenset[int]) -> None:
    """Refuses to go on where those who are left never hear of each other."""
    if not gone:
        return
    receivers = np.concatenate([one.receivers for one in topology.rounds])
    senders = np.concatenate([one.senders for one in topology.rounds])
    left = ~(np.isin(receivers, list(gone)) | np.isin(senders, list(gone)))
    labels = components(receivers[left], senders[left], size=topology.size)
    labels = np.delete(labels, list(gone))
    if len(np.unique(labels)) > 1:
        raise Refused(
            f"without the workers {sorted(gone)}, who never come back, {topology.name} falls into "
            f"{len(np.unique(labels))} groups; give a topology with more links, for example "
            f"jd.topology.exponential({topology.size}), or a stop to jd.faults.workers_lost"
        )


def _factor(row: np.ndarray) -> Factor:
    """This worker's entry of a row of weights; a plain number where all workers have the same."""
    if (row == row[0]).all():
        return float(row[0])
    # Cast before JAX sees it: of an array that it has met with 64-bit types it may still have those.
    return jnp.asarray(row.astype(jnp.result_type(float)))[worker.index()]


def _flow(
    arrays: list[jax.Array], gets: list[Factor], gives: list[Factor], *, alike: bool
) -> tuple[jax.Array, jax.Array]:
    """What arrives without what is given away, in at least float32, and what rounding drops of it.

    Where both ways of every link have one weight (`alike`), a difference is weighted instead of two
    numbers: it has more digits, and over a link still one value and its negative.
    """
    wide = worker.accumulation_dtype(arrays[0].dtype)
    own, *others = (x.astype(wide) for x in arrays)

    def weighted(factor: Factor, x: jax.Array) -> list[jax.Array]:
        none = isinstance(factor, float) and factor == 0.0
        return [] if none else [times(factor, x)]

    if alike:
        others = [x - own for x in others]
    terms = [term for f, x in zip(gets, others, strict=True) for term in weighted(f, x)]
    if not alike:
        terms += [-term for f in gives for term in weighted(f, own)]
    return of_terms(terms or [jnp.zeros_like(own)])


def _weighted(arrays: list[jax.Array], factors: list[Factor], given: list[Factor]) -> jax.Array:
    """The weighted sum, in at least float32, whatever a worker gives away."""
    wide = worker.accumulation_dtype(arrays[0].dtype)
    terms = [
        jnp.asarray(f).astype(wide) * x.astype(wide)
        for f, x in zip(factors, arrays, strict=True)
        if not (isinstance(f, float) and f == 0.0)
    ]
    return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(arrays[0], wide)

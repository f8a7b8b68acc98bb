"""Stochastic gradient push: gossip over one-way links, at once, with messages under way, or compressed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import compensated, mixing, reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    PyTree,
    State,
    check_period,
    check_rule,
    local_init,
    size_bytes,
    updates,
)
from jaxdist.algorithms.membership import averaged, remade
from jaxdist.algorithms.neighbors import check_columns, exchanges, rounds
from jaxdist.compensated import nothing, plus
from jaxdist.compress.base import Compressor, check_compressor, contractive
from jaxdist.errors import Refused
from jaxdist.topology import Topology


def push_sum(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    delay: int = 0,
    compressor: Compressor | None = None,
) -> Algorithm:
    """Stochastic gradient push (SGP): gossip where links go one way only.

    With n_i a numerator, w_i a weight that starts at 1, u_i the update that `inner` returns for the
    gradient of worker i at z_i = n_i / w_i, and A(t) a matrix whose columns sum to one,

        n_i(t+1) = sum_j A(t)_ij (n_j + u_j)
        w_i(t+1) = sum_j A(t)_ij w_j
        z_i      = n_i / w_i                  the parameters of worker i

    A sender splits what it has among those that it sends to, and need not hear from any of them.
    Nothing is lost: sum n moves by sum u, every worker's update counting alike, and sum w stays W.
    Numerators alone would pile up at the workers that many send to; the weights, which take the same
    way, undo that. Like gossip, and unlike `jd.gradient_tracking`, it stops under a fixed rate where
    workers with unlike data pull apart as strongly as mixing pulls them together. On a doubly
    stochastic matrix all weights stay 1 and this is `jd.gossip`.

    With `delay` = d > 0 (overlap SGP) a worker keeps its own share A_ii at once and what others sent
    arrives d steps later, by the matrix of the step that sent it. The exchange of a step then depends
    on nothing that the step computes, and XLA hides it behind the gradient (where the graph varies,
    with `jd.execute(..., overlap=True)`: docs/overlap.md); the price is staler averages. Messages
    under way are held by their senders, d of them, and are part of the state, of checkpoints and of
    the readout.

    With a compressor C a worker keeps a copy h_i of what the others know of its numerator, and sends
    what is new against it; the weights, one number, go as they are:

        v_i  = n_i + u_i
        h_i <- h_i + C(v_i - h_i)                         all that travels; h starts at 0
        n_i <- v_i - h_i + sum_j A_ij h_j

    What the payload leaves out stays with the sender, so nothing is lost whatever C does; and as n
    settles the error of C vanishes: it ends where it would without C. For that C must be finer the
    faster A mixes, or it diverges; with a coarse C stay closer to the identity, with
    `jd.topology.from_matrix((1 - c) * np.eye(W) + c * A)`, where c < 1 is what `jd.choco` calls the
    consensus step.

    Args:
      inner: the local rule. It sees one worker's gradients and z_i, and never communicates; its
        memory stays with the worker, and is neither weighted nor mixed.
      topology: who sends to whom, its columns summing to one; directed and varying graphs are
        welcome.
      delay: how many steps late the messages of others arrive.
      compressor: what travels, for example `jd.compress.int8()`; an unbiased one is shrunk until it
        contracts. The copies need the same matrix at every step, and no delay. None: the arrays.

    Returns:
      An `Algorithm`. shared: nothing. local: n, w (in at least float32), the state of `inner`, and
      the last `delay` messages, or with a compressor the copy h_i, sum_j A_ij h_j - h_i, and what
      rounding drops of that sum and of n, in at least float32.
      The readout is sum n / sum w, messages under way included.

    Raises:
      Refused: a rule that is not optax's; a negative delay; a row-stochastic topology; a round in
        which a worker gets nothing, or with a delay keeps nothing; a compressor with a delay, with a
      topology that varies, or with a memory of its own.

    Communication:
      Per step, size(params) bytes and the weight (4, or 8 beside float64 parameters) out of every
      worker for each permutation of the round; compressor.bytes(params) in place of size(params). The
      readout is one all-reduce of size(params) bytes and the weight.

    Example:
      Worker 0 sends to both others, which send to one each; all pull to targets of their own:

      >>> import jaxdist as jd
      >>> A = np.array([[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])
      >>> topology = jd.topology.from_matrix(A, name="one way")
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.push_sum(optax.sgd(0.01), topology), loss, workers=3)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(300):
      ...     state, metrics = trainer.step(state, jnp.arange(3.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"{trainer.readout(state):.2f}, spread {points.max() - points.min():.2f}")
      1.00, spread 0.02

    References:
      Assran et al., Stochastic Gradient Push for Distributed Deep Learning, ICML 2019.
      arXiv:1811.10792
      Nedic and Olshevsky, Distributed Optimization over Time-Varying Directed Graphs, 2015.
      arXiv:1303.2289
      Taheri, Mokhtari, Hassani, Pedarsani, Quantized Decentralized Stochastic Learning over Directed
      Graphs, ICML 2020, Algorithm 2. arXiv:2002.09964
    """
    check_rule("inner", inner)
    check_period("delay", delay, least=0)
    check_columns("push_sum", topology, keep=delay > 0)
    if compressor is not None:
        return _compressed(inner, topology, delay, compressor)
    own = np.stack([one.own for one in topology.rounds])
    away = np.stack([one.column_sums for one in topology.rounds]) - own

    def init(params: Params) -> State:
        held = params, unit_weight(params)
        empty = jax.tree.map(lambda x: jnp.zeros((delay, *x.shape), x.dtype), held)
        under_way = empty if delay else ()
        return State(jnp.int32(0), (), (held, local_init(inner, params), under_way))

    def update(grads, state: State, *, key, value, objective, branch=None) -> State:
        (n, w), inner_state, under_way = state.local
        t = state.step
        u, inner_state = updates(
            inner, grads, inner_state, quotient(n, w), value=value, objective=objective
        )
        held = optax.apply_updates(n, u), w
        if not delay:
            return State(
                t + 1, (), (mixing.mix(held, topology, t, keeps="sender"), inner_state, ())
            )
        # A message waits at its sender until it is due, so that this exchange depends on no gradient.
        due = mixing.arriving(
            jax.tree.map(lambda x: x[t % delay], under_way), topology, t - delay, branch=branch
        )
        under_way = jax.tree.map(lambda x, new: x.at[t % delay].set(new), under_way, held)
        kept = _entry(own, t)
        held = jax.tree.map(
            lambda x, late: (kept.astype(late.dtype) * x.astype(late.dtype) + late).astype(x.dtype),
            held,
            due,
        )
        return State(t + 1, (), (held, inner_state, under_way))

    def readout(state: State) -> Params:
        held, _, under_way = state.local
        if delay:
            last = state.step - 1
            sent = last - (last - jnp.arange(delay, dtype=jnp.int32)) % delay  # slot -> step
            shares = _entry(away, sent)
            held = jax.tree.map(lambda x, m: _plus_shares(x, m, shares), held, under_way)
        return quotient(*reduction.mean(held))

    return Algorithm(
        init=init,
        gradient_at=lambda state: quotient(*state.local[0]),
        update=update,
        readout=readout,
        sends=lambda params, step: (
            exchanges(topology, step - delay)
            * (size_bytes(params) + size_bytes(jax.eval_shape(unit_weight, params)))
        ),
        resize=remade(
            lambda old, fresh: (fresh[0], averaged(old[1], fresh[1]), fresh[2]),
            "sum of numerators over sum of weights, what is under way counted: from there everybody goes "
            "on with weight 1 and the workers' mean memory, and nothing is under way",
        ),
        waits=waiting.neighbors(topology, ahead=-delay, overlaps=delay > 0),
        branches=rounds(topology, late=delay) if delay else None,
    )


def _compressed(
    inner: optax.GradientTransformation, topology: Topology, delay: int, compressor: Compressor
) -> Algorithm:
    check_compressor("jd.push_sum", compressor)
    if delay:
        raise Refused(
            f"jd.push_sum was given compressor={compressor!r} and delay={delay}, but the copies that it "
            "compresses against must be those of this step; write delay=0"
        )
    if topology.period != 1:
        raise Refused(
            f"jd.push_sum with compressor={compressor!r} keeps a sum of the others' copies, and "
            f"{topology.name} changes its links; write jd.topology.exponential({topology.size}), or "
            "leave the compressor out"
        )
    contracting = contractive(compressor)
    surplus = topology.matrix(0).sum(1) - 1

    def init(params: Params) -> State:
        held = params, unit_weight(params)
        zeros = worker.vary(jax.tree.map(jnp.zeros_like, _wide(params)))
        flow = worker.vary(nothing(params))
        return State(jnp.int32(0), (), (held, local_init(inner, params), zeros, flow, zeros))

    def update(grads, state: State, *, key, value, objective) -> State:
        (n, w), inner_state, copy, flow, rest = state.local
        t = state.step
        u, inner_state = updates(
            inner, grads, inner_state, quotient(n, w), value=value, objective=objective
        )
        v = optax.apply_updates(n, u)
        news = jax.tree.map(jnp.subtract, _wide(v), copy)
        change, told = mixing.change_compressed(news, topology, t, compressor=contracting, key=key)
        # What flows is summed up by itself, and not taken as a difference of two sums of copies: over all
        # workers it cancels, and what rounding would leave of it would add to the total at every step.
        flow = plus(flow, change)
        copy = jax.tree.map(jnp.add, copy, told)
        n, rest = compensated.moved(v, rest, flow)
        w = mixing.mix(w, topology, t, keeps="sender")
        return State(t + 1, (), ((n, w), inner_state, copy, flow, rest))

    def sends(params: Params, step: int) -> int:
        wide, weight = jax.eval_shape(lambda p: (_wide(p), unit_weight(p)), params)
        return exchanges(topology, step) * (contracting.bytes(wide) + size_bytes(weight))

    def joined(old: PyTree, fresh: PyTree) -> PyTree:
        memory, copy = averaged(old[1:3], fresh[1:3])

        # sum_j A_ij h_j - h_i of one h for all, by the links to come; its sum over workers is 0.
        def flow(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            whole = surplus.reshape(-1, *[1] * (h.ndim - 1)) * h.astype(np.float64)
            high = whole.astype(h.dtype)
            return high, (whole - high).astype(h.dtype)

        return fresh[0], memory, copy, compensated.split(flow, copy), fresh[4]

    return Algorithm(
        init=init,
        gradient_at=lambda state: quotient(*state.local[0]),
        update=update,
        readout=lambda state: quotient(*reduction.mean(state.local[0])),
        sends=sends,
        waits=waiting.neighbors(topology),
        resize=remade(
            joined,
            "sum of numerators over sum of weights: from there everybody goes on with weight 1, the workers' "
            "mean memory and mean copy, and the flow that the new links make of that copy",
        ),
        method="push_sum",
    )


def unit_weight(params: Params) -> jax.Array:
    """The weight of push-sum at the start: 1, in at least float32 and the widest type of the leaves."""
    types = [worker.accumulation_dtype(x.dtype) for x in jax.tree.leaves(params)]
    return jnp.ones((), max(types, key=lambda one: jnp.dtype(one).itemsize))


def quotient(numerators: PyTree, weight: jax.Array) -> PyTree:
    """The parameters that push-sum's numerators and weight stand for, in the numerators' types."""

    def of(n: jax.Array) -> jax.Array:
        wide = worker.accumulation_dtype(n.dtype)
        return (n.astype(wide) / weight.astype(wide)).astype(n.dtype)

    return jax.tree.map(of, numerators)


def _wide(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(worker.accumulation_dtype(x.dtype)), tree)


def _entry(table: np.ndarray, step: jax.Array) -> jax.Array:
    """This worker's entry of a table [rounds, workers], at one step or several."""
    return jnp.asarray(table)[step % len(table), worker.index()]


def _plus_shares(x: jax.Array, messages: jax.Array, shares: jax.Array) -> jax.Array:
    wide = worker.accumulation_dtype(x.dtype)
    added = jnp.tensordot(shares.astype(wide), messages.astype(wide), axes=1)
    return (x.astype(wide) + added).astype(x.dtype)

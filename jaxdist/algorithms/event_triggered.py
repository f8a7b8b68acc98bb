"""Event-triggered gossip: a worker speaks only when it has moved far enough from what it last said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import compensated, mixing, reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    apply,
    check_rule,
    local_init,
    size_bytes,
)
from jaxdist.algorithms.membership import averaged, remade
from jaxdist.algorithms.neighbors import check_doubly_stochastic, exchanges
from jaxdist.compensated import nothing
from jaxdist.errors import Refused
from jaxdist.topology import Topology


def event_triggered(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    threshold: float,
    decay: float = 1.0,
) -> Algorithm:
    """Gossip in which a worker speaks only when it has moved far enough from what it last said.

    With x_i the parameters of worker i, u_i the update of `inner` for its gradient at x_i, s_i what
    its neighbors last heard of it (x0 at first), and W(t) the topology's mixing matrix,

        v_i  = x_i + u_i
        s_i' = v_i  if  |v_i - s_i| > threshold decay^t,  else s_i
        x_i' = v_i + sum_j W(t)_ij s_j' - s_i'

    |.| is the Euclidean norm over all parameters of the worker. The workers' mean moves by the mean of
    their updates, whoever speaks. With threshold 0 everybody speaks and this is `gossip`; with a
    fixed threshold the disagreement has a floor of about the threshold; let it decay and it has the
    floor of `gossip`.

    It is a *simulation* of the messages that would be saved: in one XLA program who speaks is known
    only while it runs, so that the exchange takes place at every step all the same. The metric
    `messages_sent` says which part of the messages a network would have carried.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates; its memory stays
        with the worker.
      topology: who listens to whom, doubly stochastic; its size is the number of workers. Where it
        varies, a message goes to all who ever listen.
      threshold: at step 0, in units of the parameters; at least 0.
      decay: of the threshold a step, above 0 and at most 1.

    Returns:
      An `Algorithm`. shared: the part of the messages that was due at the last step. local:
      parameters, the state of `inner`, what was last said, and what rounding drops of the parameters,
      in at least float32.

    Raises:
      Refused: a threshold or decay out of range, a rule that is not optax's, or a topology whose
        rows or columns do not sum to one.

    Communication:
      Executed: as `gossip`, and one all-reduce of 4 bytes for the metric. Needed: size(params)
      bytes for each neighbor times `messages_sent`. The readout is one all-reduce of size(params)
      bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> rule, ring = optax.sgd(0.05), jd.topology.ring(4)
      >>> algorithm = jd.event_triggered(rule, ring, threshold=0.2, decay=0.97)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state, sent = trainer.init(jnp.zeros(())), 0.0
      >>> for _ in range(100):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      ...     sent += metrics["messages_sent"] / 100
      >>> print(f"mean {trainer.readout(state):.2f} with {sent:.0%} of the messages")
      mean 1.50 with 23% of the messages

    References:
      Ghosh, Aquino, Gupta, EventGraD: Event-Triggered Communication in Parallel Machine Learning,
      Neurocomputing 2022. arXiv:2103.07454
      Singh et al., SPARQ-SGD: Event-Triggered and Compressed Communication in Decentralized
      Stochastic Optimization, 2019. arXiv:1910.14280 (the form that keeps the mean)
    """
    check_rule("inner", inner)
    check_doubly_stochastic("event_triggered", topology)
    if not 0 <= threshold < float("inf"):
        raise Refused(
            f"threshold={threshold!r} is not a distance; write one of at least 0, for example 0.1"
        )
    if not 0 < decay <= 1:
        raise Refused(f"decay={decay!r} is not in 0 < decay <= 1; write for example decay=0.99")
    listens = _listens(topology)

    def init(params: Params) -> State:
        said = jax.tree.map(jnp.copy, params)
        local = params, local_init(inner, params), said, nothing(params).low
        return State(jnp.int32(0), jnp.float32(0), local)

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state, said, rest = state.local
        moved, inner_state = apply(
            inner, grads, inner_state, params, value=value, objective=objective
        )
        distance = _distance(moved, said)
        limit = threshold * jnp.asarray(decay, distance.dtype) ** state.step.astype(distance.dtype)
        speaks = distance > limit
        said = jax.tree.map(lambda new, old: jnp.where(speaks, new, old), moved, said)
        # What they have said may stay the same for long: what rounding drops would move the workers'
        # mean, the same way at every step.
        change = mixing.change(said, topology, state.step)
        params, rest = compensated.moved(moved, rest, change)
        there = worker.there().astype(jnp.float32)
        heard = there * (there @ jnp.asarray(listens, there.dtype))  # by how many of those there
        due = worker.total(jnp.where(speaks, heard[worker.index()], 0.0))
        part = (due / jnp.maximum(heard.sum(), 1e-9)).astype(jnp.float32)
        return State(state.step + 1, part, (params, inner_state, said, rest))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=lambda params, step: exchanges(topology, step) * size_bytes(params) + 4,
        waits=waiting.neighbors(topology),
        report=lambda state: {"messages_sent": state.shared},
        resize=remade(
            lambda old, fresh: (*averaged(old[:2], fresh[:2]), *fresh[2:]),
            "everybody goes on from the workers' mean parameters and mean memory, which all have heard",
        ),
    )


def _listens(topology: Topology) -> np.ndarray:
    """Who ever listens to whom: bool [W, W], row = receiver."""
    ever = np.zeros((topology.size, topology.size), bool)
    for one in topology.rounds:
        ever[one.receivers, one.senders] = True
    return ever


def _distance(one: Params, other: Params) -> jax.Array:
    """The Euclidean distance of two pytrees, in at least float32."""

    def squares(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = worker.accumulation_dtype(a.dtype)
        return jnp.sum(jnp.square(a.astype(wide) - b.astype(wide)))

    first, *rest = jax.tree.leaves(jax.tree.map(squares, one, other))
    for more in rest:
        first = first + more
    return jnp.sqrt(first)

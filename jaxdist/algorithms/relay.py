"""RelaySGD: messages passed on along a tree, so that everybody gets the exact mean, only later."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import mixing, reduction, waiting, worker
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
from jaxdist.algorithms.neighbors import check_topology
from jaxdist.errors import Refused
from jaxdist.topology import Topology


def relay(inner: optax.GradientTransformation, tree: Topology) -> Algorithm:
    """RelaySGD: take a local step, hand on what you heard along a tree, take the mean of all of it.

    With h_i = x_i + u_i, u_i the update of `inner` for the gradient of worker i at x_i, n workers,
    and N_i the neighbors of i on the tree,

        m_{i->j}  = h_i + sum over k in N_i without j of m_{k->i} of the step before
        x_i'      = 1/n (h_i + sum over j in N_i of m_{j->i})

    A worker's h reaches a neighbor in the same step and needs one step more for every further hop;
    until it arrives x0 stands for it. So everybody has the plain mean of everybody, each value as
    old as its way is long: no floor from differing data, and no spectral gap. The price is age: the
    step size must shrink with the tree's diameter. `star`, or `tree` with many branches, is best.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates; its memory stays
        with the worker.
      tree: an undirected topology without cycles, such as `jd.topology.tree(8)`, `chain` or `star`.
        Only who its neighbors are is used, not the weights.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters, the state of `inner`, and for each neighbor
      (as many as the busiest worker has) the last message from it, in at least float32.

    Raises:
      Refused: a rule that is not optax's, or a topology that is not one tree.

    Communication:
      Per step, for each neighbor of the busiest worker size(params) bytes out of every worker, in at
      least float32 since a message is a sum over many. Workers with fewer neighbors send to
      themselves, which costs nothing. The readout is one all-reduce of size(params) bytes.

    Example:
      Five workers on a chain, each pulling to a target of its own; all reach the mean:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.relay(optax.sgd(0.05), jd.topology.chain(5))
      >>> trainer = jd.execute(algorithm, loss, workers=5)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(5.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      mean 2.000, spread 0.000

    References:
      Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, NeurIPS 2021.
      arXiv:2110.04175
    """
    check_rule("inner", inner)
    check_topology("relay", tree)
    links = sum(len(others) for others in tree.neighbors(0)) // 2
    # A topology is connected, so that one link fewer than workers makes it a tree.
    if tree.directed or tree.period != 1 or links != tree.size - 1:
        raise Refused(
            f"relay needs a tree, {tree.size - 1} undirected links that do not vary, and was given {tree}; "
            f"write for example jd.topology.tree({tree.size}) or jd.topology.chain({tree.size})"
        )
    partners, behind = _slots(tree)

    def own(table: np.ndarray, dtype: Any) -> jax.Array:
        return jnp.asarray(table, dtype)[worker.index()]

    def init(params: Params) -> State:
        # As if all had sent x0 for ever: what a message stands for is then always complete.
        messages = [
            jax.tree.map(lambda x, row=row: _wide(x) * own(row, _wide(x).dtype), params)
            for row in behind
        ]
        return State(jnp.int32(0), (), (params, local_init(inner, params), messages))

    def update(grads, state: State, *, key, value, objective) -> State:
        x, inner_state, messages = state.local
        x, inner_state = apply(inner, grads, inner_state, x, value=value, objective=objective)
        mixing.check_size(tree)
        h = jax.tree.map(_wide, x)
        before = jax.tree.map(lambda h, *m: reduce(jnp.add, m, h), h, *messages)
        passed = [
            mixing.pass_on(jax.tree.map(jnp.subtract, before, m), p)
            for p, m in zip(partners, messages, strict=True)
        ]
        # A slot without a partner keeps its zeros; a message that is lost leaves the one before it.
        heard = [
            own(row > 0, bool) & mixing.arrives(tree, p)
            for p, row in zip(partners, behind, strict=True)
        ]
        messages = [
            jax.tree.map(lambda new, old, yes=yes: jnp.where(yes, new, old), new, old)
            for yes, new, old in zip(heard, passed, messages, strict=True)
        ]
        x = jax.tree.map(
            lambda x, h, *m: (reduce(jnp.add, m, h) / tree.size).astype(x.dtype), x, h, *messages
        )
        return State(state.step + 1, (), (x, inner_state, messages))

    def sends(params: Params, step: int) -> int:
        return len(partners) * size_bytes(jax.eval_shape(lambda p: jax.tree.map(_wide, p), params))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=sends,
        resize=remade(
            lambda old, fresh: (*averaged(old[:2], fresh[:2]), fresh[2]),
            "everybody goes on from the workers' mean parameters and mean memory, as if all had sent these "
            "for ever",
        ),
        waits=waiting.neighbors(tree),
    )


def _slots(tree: Topology) -> tuple[np.ndarray, np.ndarray]:
    """The links of a tree as matchings, as many as the busiest worker has neighbors.

    Returns:
      partners: [slots, n], whom a worker exchanges with in a slot, itself if with nobody.
      behind: [slots, n], how many workers that partner speaks for, itself included; 0 for nobody.
    """
    n, neighbors = tree.size, tree.neighbors(0)
    order, parent = [0], {0: -1}
    for i in order:
        children = [j for j in neighbors[i] if j != parent[i]]
        parent |= dict.fromkeys(children, i)
        order += children
    below = np.ones(n, int)
    for i in order[:0:-1]:
        below[parent[i]] += below[i]
    partners = np.tile(np.arange(n), (tree.degree, 1))
    behind = np.zeros((tree.degree, n), int)
    for i in order[1:]:
        up = parent[i]
        # From the root down, a worker that is new has all slots free: the parent's first is enough.
        slot = int(np.flatnonzero(partners[:, up] == up)[0])
        partners[slot, [i, up]] = up, i
        behind[slot, [i, up]] = n - below[i], below[i]
    return partners, behind


def _wide(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(worker.accumulation_dtype(x.dtype))

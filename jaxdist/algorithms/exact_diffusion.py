"""Exact diffusion, D2 and EXTRA: gossip with a memory of what its exchanges did, and hence no bias.

Each keeps beside the parameters x_i a correction d_i: the running sum of what the exchanges added to
this worker. Over all workers the corrections sum to zero, so the mean of the parameters takes the step
of the mean update; at rest d_i = -u_i, which lets every worker stand at one point although its own
gradient does not vanish there. This is integral control, where gossip is proportional control.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdist import compensated, mixing, reduction, waiting
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    PyTree,
    State,
    check_rule,
    local_init,
    size_bytes,
    updates,
)
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.algorithms.neighbors import check_symmetric, exchanges, least_eigenvalue
from jaxdist.compensated import Sum, nothing, plus, scaled
from jaxdist.errors import Refused
from jaxdist.topology import Topology


def exact_diffusion(inner: optax.GradientTransformation, topology: Topology) -> Algorithm:
    """Exact diffusion: adapt, correct, combine; one message a step, and no bias from unlike data.

    With u_i the update that `inner` returns for the gradient of worker i at x_i, and psi_i(-1) = x_i(0),

        psi_i    = x_i + u_i                             adapt
        phi_i    = psi_i + x_i - psi_i(t-1)              correct
        x_i(t+1) = sum_j ((I + W) / 2)_ij phi_j          combine

    Gossip under a fixed rate stops where workers with unlike data pull apart as strongly as mixing
    pulls them together. Here x_i - psi_i(t-1), what the last exchanges did, is given back, and all
    workers come to the minimizer. It sends no more than gossip does; any symmetric W serves, since
    (I + W) / 2 has no negative eigenvalue. It answers to noise in the gradients as gossip does.

    Args:
      inner: the local rule. It never communicates; its memory stays with the worker. Where all come to
        rest the mean of the *updates* vanishes: with SGD, momentum or a schedule that is the minimizer;
        with a rule that is not linear in the gradient, such as Adam, it is another point, and
        `jd.gradient_tracking` is the method that has no bias.
      topology: who listens to whom: one symmetric matrix for the whole run.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters, the correction x - psi(t-1) (in at least
      float32), what rounding drops of either, likewise, without which the mean would wander off, and
      the state of `inner`.

    Raises:
      Refused: a rule that is not optax's; a topology that varies or is not symmetric.

    Communication:
      Per step, size(params) bytes out of every worker for each neighbor it listens to. The readout
      is one all-reduce of size(params) bytes.

    Example:
      Four workers on a ring, each pulling to a target of its own; no spread is left:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.exact_diffusion(optax.sgd(0.05), jd.topology.ring(4))
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      mean 1.500, spread 0.000

    References:
      Yuan, Ying, Zhao and Sayed, Exact Diffusion for Distributed Optimization and Learning, IEEE
      Transactions on Signal Processing 2019. arXiv:1702.05122
    """
    check_symmetric("exact_diffusion", topology)
    return _corrected("exact_diffusion", inner, topology, _diffused(0.5))


def d2(inner: optax.GradientTransformation, topology: Topology) -> Algorithm:
    """D2: exact diffusion with the matrix W itself, which mixes twice as much a step.

    With u_i the update that `inner` returns for the gradient of worker i at x_i,

        x_i(1)   = sum_j W_ij (x_j + u_j)
        x_i(t+1) = sum_j W_ij (2 x_j - x_j(t-1) + u_j - u_j(t-1))

    The two last steps extrapolate what unlike data do to a worker, and the exchange takes only the
    rest away. The smallest eigenvalue of W must lie above -1/3, or it is unstable at any rate; a ring
    of an even number of workers with weights 1/3 lies just on it. `jd.exact_diffusion` takes any
    symmetric W.

    Args:
      inner: as in `jd.exact_diffusion`: free of bias where it is linear in the gradient (SGD, momentum).
      topology: who listens to whom: one symmetric matrix for the whole run.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters, the correction x - x(t-1) - u(t-1) (as
      in `jd.exact_diffusion`) and the state of `inner`.

    Raises:
      Refused: a rule that is not optax's; a topology that varies, is not symmetric, or has an
        eigenvalue of -1/3 or less.

    Communication:
      Per step, size(params) bytes out of every worker for each neighbor it listens to. The readout
      is one all-reduce of size(params) bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.d2(optax.sgd(0.05), jd.topology.ring(5))
      >>> trainer = jd.execute(algorithm, loss, workers=5)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(5.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      mean 2.000, spread 0.000

    References:
      Tang et al., D2: Decentralized Training over Decentralized Data, ICML 2018. arXiv:1803.07068
    """
    check_symmetric("d2", topology)
    least = least_eigenvalue(topology)
    if least <= -1 / 3 + 1e-9:
        raise Refused(
            f"d2 needs a matrix whose smallest eigenvalue is above -1/3, and that of {topology.name} is "
            f"{least:.6f}; write jd.exact_diffusion(inner, topology), which takes it as it is, or give "
            f"more weight to oneself: 0.5 * np.eye({topology.size}) + 0.5 * topology.matrix()"
        )
    return _corrected("d2", inner, topology, _diffused(1.0))


def extra(inner: optax.GradientTransformation, topology: Topology) -> Algorithm:
    """EXTRA: D-PSGD with a correction; its message does not depend on the gradient.

    With u_i the update that `inner` returns for the gradient of worker i at x_i,

        x_i(1)   = sum_j W_ij x_j + u_i
        x_i(t+1) = sum_j (I + W)_ij x_j - sum_j ((I + W) / 2)_ij x_j(t-1) + u_i - u_i(t-1)

    To `jd.gossip(order="combine_while_adapt")` what `jd.exact_diffusion` is to adapt_then_combine:
    the exchange can hide behind the backward pass, the largest stable rate is smaller.

    Args:
      inner: as in `jd.exact_diffusion`: free of bias where it is linear in the gradient (SGD, momentum).
      topology: who listens to whom: one symmetric matrix for the whole run.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters, the correction (half of what all exchanges
      so far added to this worker, kept as in `jd.exact_diffusion`) and the state of `inner`.

    Raises:
      Refused: a rule that is not optax's; a topology that varies or is not symmetric.

    Communication:
      Per step, size(params) bytes out of every worker for each neighbor it listens to. The readout
      is one all-reduce of size(params) bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.extra(optax.sgd(0.05), jd.topology.ring(4))
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      mean 1.500, spread 0.000

    References:
      Shi, Ling, Wu and Yin, EXTRA: An Exact First-Order Algorithm for Decentralized Consensus
      Optimization, SIAM Journal on Optimization 2015. arXiv:1404.6264
    """
    check_symmetric("extra", topology)

    def extrapolated(x: PyTree, moved: PyTree, change: Callable[[PyTree], Sum]):
        added = change(x)
        return added, scaled(added, 0.5)

    return _corrected("extra", inner, topology, extrapolated, overlaps=True)


def _diffused(share: float):
    def combined(x: PyTree, moved: PyTree, change: Callable[[PyTree], Sum]):
        sent = jax.tree.map(lambda wide, x: wide.astype(x.dtype), moved, x)
        added = scaled(change(sent), share)
        return added, added

    return combined


def _corrected(
    method: str,
    inner: optax.GradientTransformation,
    topology: Topology,
    combine,
    *,
    overlaps: bool = False,
) -> Algorithm:
    """`combine`: what is added to x + u + d and to d, from x, x + u + d and the exchange.

    In the papers' terms, W~ being the matrix of `exact_diffusion` or `d2`: phi = x + u + d,
    x' = phi + (W~ - I) phi and d' = x' - (x + u) = d + (W~ - I) phi. For EXTRA d' = d + (W - I) x / 2.
    Written so, the sum of d over workers is zero as long as nothing that is added is rounded off: it is
    kept in two numbers, for what it is off by moves the mean at every step. So is x: where it rests on
    its last bit the roundings of the workers need not cancel, and may all go one way.
    """
    check_rule("inner", inner)

    def init(params: Params) -> State:
        d = nothing(params)
        return State(jnp.int32(0), (), (params, d.low, d, local_init(inner, params)))

    def update(grads, state: State, *, key, value, objective) -> State:
        x, rest, d, inner_state = state.local
        t = state.step
        u, inner_state = updates(inner, grads, inner_state, x, value=value, objective=objective)
        step = plus(d, nothing(x)._replace(high=jax.tree.map(_as_wide, u, d.high)))
        moved = jax.tree.map(_add, compensated.value(step), x)
        to_x, to_d = combine(x, moved, lambda sent: mixing.change(sent, topology, t))
        x, rest = compensated.moved(x, rest, plus(step, to_x))
        return State(t + 1, (), (x, rest, plus(d, to_d), inner_state))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=lambda params, step: exchanges(topology, step) * size_bytes(params),
        resize=AVERAGED,
        method=method,
        waits=waiting.neighbors(topology, overlaps=overlaps),
    )


def _as_wide(x: jax.Array, wide: jax.Array) -> jax.Array:
    return x.astype(wide.dtype)


def _add(wide: jax.Array, x: jax.Array) -> jax.Array:
    return wide + x.astype(wide.dtype)

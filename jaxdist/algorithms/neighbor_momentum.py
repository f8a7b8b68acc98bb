"""Momentum for gossip: a memory of where all go, not of where each worker's own data pull.

Lin et al. 2021 (quasi-global momentum) and Yuan et al. 2021 (DecentLaM).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist import mixing, reduction, waiting, worker
from jaxdist.algorithms.base import Algorithm, Params, State, size_bytes
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.algorithms.neighbors import check_doubly_stochastic, exchanges
from jaxdist.errors import Refused
from jaxdist.topology import Topology

Schedule = Callable[[jax.Array], Any]
PyTree = Any


def quasi_global_momentum(
    learning_rate: float | Schedule, topology: Topology, *, momentum: float
) -> Algorithm:
    """Gossip with momentum along the way that a worker really went, neighbors included.

    With x_i the parameters of worker i, m_i its memory, g_i its gradient at x_i, b = `momentum` and
    W(t) the mixing matrix,

        x_i' = sum_j W(t)_ij (x_j - lr (b m_j + g_j))
        m_i' = b m_i + (1 - b) (x_i - x_i') / lr

    Where data differ, the ordinary momentum of gossip piles up each worker's own pull. What a worker
    moved by after mixing is closer to what all moved by, and so is this memory. The rule of the
    step is the method itself: there is no `inner`. For b = 0 it is `gossip` with SGD, and at rest
    it stands where that stands.

    Args:
      learning_rate: lr, a positive number or an optax schedule. A step at which it is 0 adds
        nothing to the memory.
      topology: who listens to whom, doubly stochastic; its size is the number of workers.
      momentum: b, both of the paper's beta and mu; at least 0 and below 1.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters and memory, the latter in at least float32.

    Raises:
      Refused: a learning rate or momentum out of range, or a topology whose rows or columns do not
        sum to one.

    Communication:
      Per step, size(params) bytes out of every worker for each neighbor it listens to: the memory
      is never sent. The readout is one all-reduce of size(params) bytes.

    Example:
      Four workers on a ring, each pulling to a target of its own:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.quasi_global_momentum(0.05, jd.topology.ring(4), momentum=0.5)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(100):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.2f}, spread {points.max() - points.min():.2f}")
      mean 1.50, spread 0.12

    References:
      Lin et al., Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous
      Data, ICML 2021. arXiv:2102.04761
    """

    def rule(x, m, g, t, lr):
        ahead = jax.tree.map(lambda x, m, g: _stepped(x, lr, momentum * m + _wide(g)), x, m, g)
        new = mixing.mix(ahead, topology, t)
        moved = jax.tree.map(lambda x, new: _per(_wide(x) - _wide(new), lr), x, new)
        m = jax.tree.map(lambda m, moved: momentum * m + (1 - momentum) * moved, m, moved)
        return new, m

    return _method("quasi_global_momentum", rule, learning_rate, topology, momentum)


def decentlam(learning_rate: float | Schedule, topology: Topology, *, momentum: float) -> Algorithm:
    """Gossip with momentum whose memory takes in mixing as if it were part of the gradient.

    With x_i the parameters of worker i, m_i its memory, g_i its gradient at x_i, b = `momentum` and
    W(t) the mixing matrix,

        q_i  = (x_i - sum_j W(t)_ij (x_j - lr g_j)) / lr
        m_i' = b m_i + q_i
        x_i' = x_i - lr m_i'

    Ordinary momentum under gossip enlarges the error that differing data leave by 1 / (1 - b)^2.
    Here it vanishes at rest, which is where `gossip` with plain SGD stands. The rule of the step is
    the method itself: there is no `inner`. One worker alone runs `optax.sgd(lr, momentum)`.

    Args:
      learning_rate: lr, a positive number or an optax schedule. A step at which it is 0 adds
        nothing to the memory.
      topology: who listens to whom, doubly stochastic; its size is the number of workers.
      momentum: b, at least 0 and below 1. Large ones need weights with no negative eigenvalues, for
        example `from_matrix((I + W) / 2)`.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters and memory, the latter in at least float32.

    Raises:
      Refused: a learning rate or momentum out of range, or a topology whose rows or columns do not
        sum to one.

    Communication:
      Per step, size(params) bytes out of every worker for each neighbor it listens to. The readout
      is one all-reduce of size(params) bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.decentlam(0.05, jd.topology.ring(4), momentum=0.5)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(100):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.2f}, spread {points.max() - points.min():.2f}")
      mean 1.50, spread 0.12

    References:
      Yuan et al., DecentLaM: Decentralized Momentum SGD for Large-batch Deep Training, ICCV 2021.
      arXiv:2104.11981
    """

    def rule(x, m, g, t, lr):
        ahead = jax.tree.map(lambda x, g: _stepped(x, lr, _wide(g)), x, g)
        mixed = mixing.mix(ahead, topology, t)
        q = jax.tree.map(lambda x, mixed: _per(_wide(x) - _wide(mixed), lr), x, mixed)
        m = jax.tree.map(lambda m, q: momentum * m + q, m, q)
        return jax.tree.map(lambda x, m: _stepped(x, lr, m), x, m), m

    return _method("decentlam", rule, learning_rate, topology, momentum)


def _method(
    name: str,
    rule: Callable[..., tuple[Params, PyTree]],
    learning_rate: float | Schedule,
    topology: Topology,
    momentum: float,
) -> Algorithm:
    """What both have in common: all but the two lines of their rule."""
    if not callable(learning_rate) and not 0 < learning_rate < float("inf"):
        raise Refused(
            f"learning_rate={learning_rate!r} of {name} is neither a positive number nor a schedule; "
            f"write jd.{name}(0.1, jd.topology.ring(8), momentum=0.9)"
        )
    check_doubly_stochastic(name, topology)
    if isinstance(momentum, bool) or not 0 <= momentum < 1:
        raise Refused(
            f"momentum={momentum!r} of {name} is not in 0 <= momentum < 1; write momentum=0.9"
        )

    def init(params: Params) -> State:
        memory = jax.tree.map(lambda x: jnp.zeros_like(_wide(x)), params)
        return State(jnp.int32(0), (), (params, memory))

    def update(grads, state: State, *, key, value, objective) -> State:
        x, m = state.local
        lr = learning_rate(state.step) if callable(learning_rate) else learning_rate
        return State(state.step + 1, (), rule(x, m, grads, state.step, lr))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=lambda params, step: exchanges(topology, step) * size_bytes(params),
        resize=AVERAGED,
        method=name,
        waits=waiting.neighbors(topology),
    )


def _wide(x: jax.Array) -> jax.Array:
    """In at least float32: the difference of two nearby bfloat16 numbers has few bits."""
    x = jnp.asarray(x)
    return x.astype(worker.accumulation_dtype(x.dtype))


def _stepped(x: jax.Array, lr: Any, direction: jax.Array) -> jax.Array:
    """x - lr direction, in the type of x."""
    return (_wide(x) - jnp.asarray(lr, direction.dtype) * direction).astype(x.dtype)


def _per(moved: jax.Array, lr: Any) -> jax.Array:
    """moved / lr, or 0 where a schedule stands at 0."""
    lr = jnp.asarray(lr, moved.dtype)
    return jnp.where(
        lr > 0, moved / jnp.where(lr > 0, lr, jnp.ones_like(lr)), jnp.zeros_like(moved)
    )

"""Any method under faults: links that drop messages, workers that are away."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist import faults, worker
from jaxdist.algorithms.base import Algorithm, Params, State, method_of


def faulty(algorithm: Algorithm, happens: faults.Faults) -> Algorithm:
    """The same method on a network that loses messages and workers.

    At every step all exchanges of the method lose what `happens` says. What becomes of the weight of
    a message that did not arrive is `jd.mix`'s to say: under weights of which the rows sum to one it
    falls to the receiver's own value, under push-sum the sender keeps what it could not send. On
    undirected graphs, where a link is lost both ways, the mean of the workers is preserved. On
    directed ones only push-sum preserves it.

    A worker that is away takes no step: it computes nothing, hears nothing, and its local room stays
    as it was. Reductions, the readout among them, are over those who are there.

    Args:
      algorithm: any, for example `jd.gossip(optax.sgd(0.1), jd.topology.ring(8))`.
      happens: for example `jd.faults.link_loss(0.01, seed=0)`.

    Returns:
      An `Algorithm` with the rooms of the one given.

    Raises:
      Refused: while tracing, workers that never come back and without whom the others fall into
        groups; a named worker beyond the run; push_sum with a delay.

    Communication:
      As the method: the program is one, and a lost message is one that is not used. A real network
      loses messages without asking; that both ends know of the loss is what an acknowledgement is for.

    Example:
      >>> import optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> gossip = jd.gossip(optax.sgd(0.05), jd.topology.ring(4))
      >>> algorithm = jd.faulty(gossip, jd.faults.link_loss(0.1, seed=0))
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(100):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"mean {trainer.readout(state):.3f}")
      mean 1.500

    References:
      Xiao, Boyd, Lall, A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus,
      IPSN 2005 (weights on links that come and go). Vogels et al., RelaySum, NeurIPS 2021, section
      5.4 (training on unreliable networks). arXiv:2110.04175
    """

    def now(state: State) -> faults.Masks:
        return faults.masks(happens, state.step, worker.count())

    def here(state: State) -> jax.Array:
        alive = now(state).alive
        return jnp.bool_(True) if alive is None else alive[worker.index()]

    def active(state: State) -> jax.Array:
        return here(state) if algorithm.active is None else here(state) & algorithm.active(state)

    def update(grads, state: State, **given: Any) -> State:
        with faults.happening(now(state)):
            new = algorithm.update(grads, state, **given)
        if happens.alive is None:
            return new
        stays = ~here(state)
        local = jax.tree.map(
            lambda new, old: jnp.where(stays, old, new), worker.vary(new.local), state.local
        )
        return State(new.step, new.shared, local)

    def readout(state: State) -> Params:
        with faults.happening(now(state)):
            return algorithm.readout(state)

    return algorithm._replace(
        update=update,
        method=method_of(algorithm),
        readout=readout,
        active=algorithm.active if happens.alive is None else active,
    )

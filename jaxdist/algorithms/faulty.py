"""Any method under faults: links that drop messages, workers that are away."""

from contextlib import AbstractContextManager
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

    A worker that is away takes no step: it computes nothing, hears nothing, its local room stays as it
    was, and it counts for nothing. Means, votes, draws of clients and numbers of workers are of those
    who are there; a clock stands still for who is away, and nobody waits for it. So with
    some away for ever the method is what it would be with the others alone. At a step at which
    nobody is there nothing moves. Faults may be put around a method that is faulty: all of them strike.

    Where a worker keeps something for all, its absence has no meaning, and it is refused:
    sharded_all_reduce, lbfgs, sharded servers, compressors whose second compression is shared out
    (all but `top_k`, `random_k` and `dct_top_k`), `ef21`, one_bit_adam, relay. Compressed exchanges
    with neighbors, and a delayed push_sum, can not bear lost messages either.

    Args:
      algorithm: any, for example `jd.gossip(optax.sgd(0.1), jd.topology.ring(8))`.
      happens: for example `jd.faults.link_loss(0.01, seed=0)`.

    Returns:
      An `Algorithm` with the rooms of the one given.

    Raises:
      Refused: while tracing, workers that never come back and without whom the others fall into
        groups, or of whom nobody is left; a named worker beyond the run; a method as above.

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

    def strike(state: State) -> AbstractContextManager[None]:
        """The faults of this step, and of what is inside: so that everything sees all of them."""
        own = faults.masks(happens, state.step, worker.count())
        inside = None if algorithm.alive is None else algorithm.alive(state)
        return faults.happening(own, faults.Masks(inside, method=method_of(algorithm)))

    def alive(state: State) -> jax.Array:
        with strike(state):
            return worker.there()

    def active(state: State) -> jax.Array:
        with strike(state):
            who = worker.there()
            # Where nobody is there all tell their loss, so that there is one; it moves nothing.
            here = (who | ~who.any())[worker.index()]
            return here if algorithm.active is None else here & algorithm.active(state)

    def update(grads, state: State, **given: Any) -> State:
        with strike(state):
            new = algorithm.update(grads, state, **given)
            if happens.alive is None:
                return new
            who = worker.there()
        shared = _where(who.any(), new.shared, state.shared)
        local = _where(who[worker.index()], worker.vary(new.local), state.local)
        return State(new.step, shared, local)

    def readout(state: State) -> Params:
        with strike(state):
            return algorithm.readout(state)

    away = happens.alive is not None
    return algorithm._replace(
        update=update,
        method=method_of(algorithm),
        readout=readout,
        active=active if away or algorithm.active is not None else None,
        alive=alive if away else algorithm.alive,
    )


def _where(so: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(so, new, old), new, old)

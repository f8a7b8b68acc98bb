"""A run goes on with another number of workers, by the rule that its method states."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import stored_arrays
from jaxdist.algorithms.base import State, method_of
from jaxdist.errors import Refused
from jaxdist.executor import Trainer

PyTree = Any

PARAMETERS_ONLY = "the method states no rule: its parameters are carried, all else begins anew"


class Resized(NamedTuple):
    """A state for other workers, and what became of the old one.

    Attributes:
      state: where `after` is.
      said: what was carried and what was made anew, in a line. Show it.
    """

    state: State
    said: str


def resize(state: State, before: Trainer, after: Trainer) -> Resized:
    """Takes a state from one number of workers to another, of the same method.

    The readout stays what it was, and so do the step and all that is shared. What every worker keeps is
    made by the method's rule (`Algorithm.resize`): mostly everybody goes on from the mean over the
    old workers, of the parameters and of every memory, so that means, and sums that are zero, stay.
    A method without a rule begins anew, at step 0, from its parameters.

    From one method to another only parameters are carried, and no function is needed for it:
    `after.init(before.readout(state))`.

    Args:
      state: of `before`; it stays as it is. A state of W workers can be restored on any devices of
        which the number divides W, one device among them.
      before: the trainer that the state is of.
      after: the trainer to go on with: the same method made for its number of workers (a topology
        and a clock have a size).

    Returns:
      A `Resized`.

    Raises:
      Refused: the state is not of `before`, the two are not of one method, or the method can not
        be resized now; names which.

    Example:
      >>> import jaxdist as jd, jax.numpy as jnp, optax
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> def ring(workers):
      ...     rule = jd.gossip(optax.sgd(0.1), jd.topology.ring(workers))
      ...     return jd.execute(rule, loss, workers=workers)
      >>> eight, six = ring(8), ring(6)
      >>> state, _ = eight.step(eight.init(jnp.zeros(())), jnp.arange(8.0))
      >>> before = eight.readout(state).item()
      >>> state, said = jd.resize(state, eight, six)
      >>> print(f"{before:.2f} -> {six.readout(state):.2f} at step {state.step}")
      0.70 -> 0.70 at step 1
      >>> state, _ = six.step(state, jnp.arange(6.0))
    """
    wrong = {len(x) for x in jax.tree.leaves(state.local)} - {before.workers}
    if wrong:
        raise Refused(
            f"the state is of {wrong.pop()} workers and before of {before.workers}: expected the trainer "
            "that made it; write jd.resize(state, before, after)"
        )
    fresh = after.init(before.readout(state))
    old, new = (method_of(trainer.algorithm) for trainer in (before, after))
    if old != new:
        raise Refused(
            f"before is of {old} and after of {new}, another method; write "
            "after.init(before.readout(state)), which carries the parameters"
        )
    rule = after.algorithm.resize
    if rule is None:
        return Resized(fresh, PARAMETERS_ONLY)
    made = rule.rule(jax.tree.map(_on_host, state), jax.tree.map(_on_host, fresh))
    if _signature(made) != _signature(fresh):
        raise Refused(
            f"before and after are both of {new}, and share or keep other arrays: expected one rule; write "
            "after.init(before.readout(state)), which carries the parameters"
        )
    return Resized(jax.tree.map(_placed, made, fresh), rule.says)


def _signature(state: State) -> Any:
    return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _on_host(x: jax.Array) -> Any:
    """The whole array, in every process; keys stay what they are."""
    if _is_key(x):
        data = jax.random.key_data(x)
        return jax.random.wrap_key_data(jnp.asarray(_on_host(data)), impl=jax.random.key_impl(x))
    return stored_arrays.whole(x)


def _placed(made: Any, like: jax.Array) -> jax.Array:
    if _is_key(like):
        return jax.device_put(made, like.sharding)
    host = np.asarray(made)
    # Cut out, never aliased: the next step donates it.
    return jax.make_array_from_callback(host.shape, like.sharding, lambda i: np.array(host[i]))

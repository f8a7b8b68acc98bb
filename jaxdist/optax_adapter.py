"""An Algorithm as an optax transformation, for people with a training loop of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist import keys, worker
from jaxdist.algorithms.base import UPDATE, Algorithm, Params, State, check_real
from jaxdist.errors import Refused


def as_optax(algorithm: Algorithm, *, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Runs an algorithm inside a loop that speaks optax, over a named axis called `worker`.

    It takes the steps of `jd.execute` with one worker a device and the same seed, if the gradients are
    the same. Of methods in which not all workers deliver at every step (a clock, `clients_per_round`,
    `jd.faulty`) the gradients of those who do not are left out.

    The State lives in the optax state; the update returned is the algorithm's next point minus the
    caller's parameters, so that rounding does not add up. The State is what workers agree on: the
    caller's own copy of the parameters may differ from it in the last bit.

    Args:
      algorithm: any `Algorithm`.
      seed: of the keys handed to the algorithm, those of `jd.execute(..., seed=seed)`. What your loss
        draws is yours.

    Returns:
      An optax transformation whose `update` must run inside `jax.pmap(..., axis_name="worker")` or a
      `shard_map` that is manual over `worker`, one worker per device. It takes `value` (this worker's
      loss) and `value_fn` (its loss as a function) for algorithms that want them. Take gradients of
      this worker's own loss: nobody may average them before.

    Example:
      >>> import jaxdist as jd
      >>> rule = jd.as_optax(jd.gossip(optax.sgd(0.1), jd.topology.complete(4)))
      >>> def step(params, state, target):
      ...     updates, state = rule.update(params - target, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> params = jnp.zeros(4)
      >>> mapped = jax.pmap(step, axis_name="worker", devices=jax.devices()[:4])
      >>> state = jax.pmap(rule.init, axis_name="worker", devices=jax.devices()[:4])(params)
      >>> params, state = mapped(params, state, jnp.arange(4.0))
      >>> [round(float(x), 3) for x in params]
      [0.15, 0.15, 0.15, 0.15]
    """

    def init(params: Params) -> Any:
        check_real(params)
        return algorithm.init(params)

    def update(
        updates: Any,
        state: Any,
        params: Params | None = None,
        *,
        value: Any = None,
        value_fn: Any = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        if params is None:
            raise Refused("as_optax needs the parameters; write rule.update(grads, state, params)")
        # As the trainer has it: the same keys, and zeros of who does not deliver.
        key = jax.random.fold_in(jax.random.fold_in(keys.key(seed), state.step), UPDATE)
        if algorithm.active is not None:
            updates, value = _delivered(worker.vary(algorithm.active(state)), (updates, value))
        new: State = algorithm.update(updates, state, key=key, value=value, objective=value_fn)
        return jax.tree.map(jnp.subtract, algorithm.gradient_at(new), params), new

    return optax.GradientTransformationExtraArgs(init, update)


def _delivered(active: jax.Array, values: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(active, x, jnp.zeros_like(x)), values)

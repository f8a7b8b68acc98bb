"""Hogwild: no locks, so that a worker reads parameters of which some are newer than others."""

from typing import Never

import jax
import jax.numpy as jnp
import optax

from jaxdist.algorithms.base import Algorithm, Params, check_rule, refuse_others
from jaxdist.algorithms.served import check_clock, served
from jaxdist.algorithms.server import Placement, make_server
from jaxdist.clock import Clock
from jaxdist.errors import Refused


def hogwild(
    inner: optax.GradientTransformation,
    *others: Never,
    clock: Clock,
    missed: float = 0.5,
    server: Placement = "replicated",
) -> Algorithm:
    """Hogwild, simulated: reads are torn, every component of a copy has a staleness of its own.

    With x the shared parameters and x_i what worker i reads, whenever worker i has finished
    g_i = grad f_i(x_i),

        x      <- x + inner(g_i)
        x_i[c] <- x[c]       for each component c with probability 1 - missed, independently
                  x_i[c]     else: the write that would have shown is not seen yet

    in the order in which the workers finish. So a component is older than the pull by r pulls with
    probability (1 - missed) missed^r. It is a *simulation* of component-wise staleness: nothing is
    lock-free inside one XLA program, writes are never lost, and it is no faster for it. Use it to see
    what a model and a rule tolerate. `missed=0` is `downpour`.

    Reported after every step, as by `downpour`: `staleness` (a histogram, counted from the worker's
    last pull: that of its newest components), `mean_staleness`, `server_version`,
    `simulated_seconds`. With one worker a device an idle worker computes nothing; with lanes its
    gradient is computed and masked.

    Args:
      inner: the rule for the shared parameters, run once for every gradient; its memory is shared.
      others: nothing; a topology is refused with the method that takes one.
      clock: how long everybody's gradients take; its size is the number of workers.
      missed: the probability that a read misses the newest value of a component; below 1.
      server: where the shared parameters are: `"replicated"` or `"sharded"`, as in `downpour`.

    Returns:
      An `Algorithm`. shared: the parameters and the state of `inner` (sharded: local, a share each),
      the clock and the staleness. local: what was read.

    Raises:
      Refused: no clock, a clock of another size, a probability outside [0, 1), a rule that is not
        optax's or, on a sharded server, not elementwise.

    Communication:
      As `downpour`: per step one all-gather of size(params) bytes; sharded: two all-to-alls.

    Example:
      >>> import jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> clock = jd.clock.speeds([1.0, 1.0, 1.0, 1.0])
      >>> algorithm = jd.hogwild(optax.sgd(0.01), clock=clock, missed=0.8)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.steps(state, jnp.tile(jnp.arange(4.0), (300, 1)))
      >>> print(f"{trainer.readout(state):.1f}")
      1.5

    References:
      Niu, Recht, Re, Wright, Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
      Descent, NeurIPS 2011. arXiv:1106.5730
    """
    refuse_others("hogwild", others)
    check_rule("inner", inner)
    check_clock("hogwild", clock)
    if not 0 <= missed < 1:
        raise Refused(
            f"missed={missed!r} is not a probability below 1; write for example missed=0.5"
        )

    def torn(key: jax.Array, new: Params, old: Params) -> Params:
        leaves, structure = jax.tree.flatten(new)
        keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))

        def of(key: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(jax.random.bernoulli(key, missed, new.shape), old, new)

        return jax.tree.map(of, keys, new, old)

    made = make_server(inner, server, workers=clock.size)
    return served(made, clock, method="hogwild", pulled=torn)

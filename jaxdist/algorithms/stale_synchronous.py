"""Stale synchronous parallel: a parameter server whose fast workers wait before they lead by too much."""

from typing import Never

import optax

from jaxdist.algorithms.base import Algorithm, check_period, check_rule, refuse_others
from jaxdist.algorithms.served import check_clock, served
from jaxdist.algorithms.server import Placement, make_server
from jaxdist.clock import Clock


def stale_synchronous(
    inner: optax.GradientTransformation,
    *others: Never,
    clock: Clock,
    bound: int,
    server: Placement = "replicated",
) -> Algorithm:
    """SSP: a worker may lead the slowest by at most `bound` gradients when it begins another.

    With x the parameters of the server, x_i the copy of worker i and k_i the number of gradients it has
    delivered, whenever worker i has finished g_i = grad f_i(x_i),

        x   <- x + inner(g_i);  k_i <- k_i + 1
        x_i <- x        as soon as k_i - min_j k_j <= bound: at once, or when the slowest has delivered

    in the order in which the workers finish. So while a worker computes anybody else delivers at most
    2 bound + 1 gradients, and the fastest are as fast as the slowest in the long run. A large bound is
    `downpour`. Bound 0 is synchronous: all gradients of a round are taken at one point, a step of
    the trainer is a round, and it lasts as long as its slowest worker; W pushes of a plain SGD with
    learning rate r are then one step of `all_reduce` with W r. With a rule that has memory, W pushes
    are W steps of that rule.

    Reported after every step, as by `downpour`: `staleness` (a histogram), `mean_staleness`,
    `server_version`, `simulated_seconds`. With one worker a device an idle worker computes nothing;
    with lanes its gradient is computed and masked.

    Args:
      inner: the rule of the server, run once for every push; its memory is the server's.
      others: nothing; a topology is refused with the method that takes one.
      clock: how long everybody's gradients take; its size is the number of workers.
      bound: by how many gradients a worker that begins one may lead the slowest.
      server: `"replicated"` or `"sharded"`, as in `downpour`.

    Returns:
      An `Algorithm`. shared: the server's parameters and the state of `inner` (sharded: local, a
      share each), the clock and the staleness. local: the copy.

    Raises:
      Refused: no clock, a clock of another size, a bound below 0, a rule that is not optax's or,
        on a sharded server, not elementwise.

    Communication:
      As `downpour`: per step one all-gather of size(params) bytes; sharded: two all-to-alls.

    Example:
      The time that 100 gradients of each of four workers take, the last one four times slower:

      >>> import jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> clock = jd.clock.speeds([1.0, 1.0, 1.0, 0.25])
      >>> algorithm = jd.stale_synchronous(optax.sgd(0.05 / 4), clock=clock, bound=0)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.steps(state, jnp.tile(jnp.arange(4.0), (100, 1)))
      >>> print(f"{trainer.readout(state):.3f} at {metrics['simulated_seconds'][-1]:.0f} seconds")
      1.500 at 400 seconds

    References:
      Ho et al., More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server,
      NeurIPS 2013.
    """
    refuse_others("stale_synchronous", others)
    check_rule("inner", inner)
    check_clock("stale_synchronous", clock)
    check_period("bound", bound, least=0)
    made = make_server(inner, server, workers=clock.size)
    return served(made, clock, method="stale_synchronous", bound=bound)

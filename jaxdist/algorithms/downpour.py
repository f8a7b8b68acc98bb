"""Downpour SGD: workers push gradients to a parameter server at their own pace, and pull from it."""

from typing import Never

import optax

from jaxdist.algorithms.base import Algorithm, check_period, check_rule, refuse_others
from jaxdist.algorithms.served import check_clock, served
from jaxdist.algorithms.server import Placement, make_server
from jaxdist.clock import Clock


def downpour(
    inner: optax.GradientTransformation,
    *others: Never,
    clock: Clock,
    push_every: int = 1,
    pull_every: int = 1,
    server: Placement = "replicated",
) -> Algorithm:
    """Downpour SGD: nobody waits; the server takes every push as it comes, however stale.

    With x the parameters of the server and x_i the copy of worker i, whenever worker i has finished a
    gradient g_i = grad f_i(x_i), its k-th,

        s_i <- s_i + g_i
        x   <- x + inner(s_i);  s_i <- 0      where push_every divides k: a push
        x_i <- x                              where pull_every divides k: a pull

    in the order in which the workers finish. A step of the trainer is one tick of the clock: everybody
    who finishes before somebody finishes for the second time, each at most once, so that a step is no
    approximation but a stretch of the sequence of events. A worker pulls what the server holds right
    after its own push, not what it holds at the end of the step. A push is the sum of its gradients;
    W pushes move the server W times, so that a learning rate is to be compared with that of
    `all_reduce` divided by W.

    The staleness of a push is the number of versions (pushes) by which the server is newer than the
    copy of its worker. It is reported after every step, for the run so far: `staleness` int32 [4 W],
    the histogram, whose last entry counts everything beyond; `mean_staleness`; `server_version`; and
    `simulated_seconds`.

    With one worker a device, who is idle in a step computes nothing: its gradient sits in a
    conditional of the device's own program. With lanes it is computed and masked, for the lanes of a
    device run in lockstep: right, but no faster.

    Args:
      inner: the rule of the server (Adagrad in the paper), run once for every push, on what that push
        brings. Its memory is the server's, and mixes all workers in the order of arrival. A rule
        that asks for the loss has no loss to see.
      others: nothing; a topology is refused with the method that takes one.
      clock: how long everybody's gradients take; its size is the number of workers.
      push_every: gradients that are summed into one push.
      pull_every: gradients from one pull to the next.
      server: `"replicated"`: every device holds the server and receives all pushes. `"sharded"`:
        every worker holds 1/W of it, receives 1/W of every push, and runs the arrivals on its share.
        The same numbers; `inner` must be elementwise.

    Returns:
      An `Algorithm`. shared: the server's parameters and the state of `inner` (sharded: local, a
      share each), the clock and the staleness. local: the copy, the sum of gradients not yet pushed
      where push_every is above 1.

    Raises:
      Refused: no clock, a clock of another size, a period below 1, a rule that is not optax's or,
        on a sharded server, not elementwise.

    Communication:
      Per step one all-gather with size(params) bytes out of every worker, which leaves W size(params)
      on every device. Sharded: two all-to-alls of size(params) bytes (padded to a multiple of W
      numbers), which leave size(params) each. The readout of a sharded server is one all-gather of
      size(params) / W bytes.

    Example:
      Four workers, the last one four times slower, each pulling to a target of its own:

      >>> import jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> clock = jd.clock.speeds([1.0, 1.0, 1.0, 0.25])
      >>> trainer = jd.execute(jd.downpour(optax.sgd(0.01), clock=clock), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.steps(state, jnp.tile(jnp.arange(4.0), (400, 1)))
      >>> print(f"{trainer.readout(state):.1f} at {metrics['simulated_seconds'][-1]:.0f} seconds")
      1.2 at 400 seconds
      >>> metrics["staleness"][-1].tolist()
      [1, 1, 901, 297, 0, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0]

      The slow one, whose target is 3, is heard a quarter as often: 15/13 is the mean by arrivals.

    References:
      Dean et al., Large Scale Distributed Deep Networks, NeurIPS 2012.
      Li et al., Scaling Distributed Machine Learning with the Parameter Server, OSDI 2014.
    """
    refuse_others("downpour", others)
    check_rule("inner", inner)
    check_clock("downpour", clock)
    check_period("push_every", push_every)
    check_period("pull_every", pull_every)
    return served(
        make_server(inner, server, workers=clock.size),
        clock,
        method="downpour",
        push_every=push_every,
        pull_every=pull_every,
    )

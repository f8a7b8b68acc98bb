"""DC-ASGD: a parameter server that corrects a stale gradient to first order before it uses it."""

from typing import Never

import jax
import jax.numpy as jnp
import optax

from jaxdist.algorithms.base import Algorithm, Params, check_rule, refuse_others
from jaxdist.algorithms.served import check_clock, served
from jaxdist.algorithms.server import Placement, make_server
from jaxdist.clock import Clock
from jaxdist.errors import Refused


def delay_compensated(
    inner: optax.GradientTransformation,
    *others: Never,
    clock: Clock,
    strength: float,
    server: Placement = "replicated",
) -> Algorithm:
    """DC-ASGD: asynchronous SGD whose stale gradients are moved to where the server is now.

    With x the parameters of the server and x_i the copy of worker i, whenever worker i has finished
    g_i = grad f_i(x_i),

        x   <- x + inner(g_i + strength g_i g_i (x - x_i))       products by component
        x_i <- x

    in the order in which the workers finish. The bracket is a Taylor step from x_i to x, with
    the square of the gradient for the diagonal of the Hessian, which is right on average for a
    log-likelihood near its optimum, and anything elsewhere. Strength 0 is `downpour`; 1 is the whole
    estimate, and the paper takes less (0.04, or 2 over the root mean square of the gradient).

    Reported after every step, as by `downpour`: `staleness` (a histogram), `mean_staleness`,
    `server_version`, `simulated_seconds`. With one worker a device an idle worker computes nothing;
    with lanes its gradient is computed and masked.

    Args:
      inner: the rule of the server, run once for every push on the corrected gradient; its memory
        is the server's.
      others: nothing; a topology is refused with the method that takes one.
      clock: how long everybody's gradients take; its size is the number of workers.
      strength: of the correction, not negative.
      server: `"replicated"` or `"sharded"`, as in `downpour`.

    Returns:
      An `Algorithm`. shared: the server's parameters and the state of `inner` (sharded: local, a
      share each), the clock and the staleness. local: the copy.

    Raises:
      Refused: no clock, a clock of another size, a negative strength, a rule that is not optax's
        or, on a sharded server, not elementwise.

    Communication:
      A push is the gradient and the copy: per step one all-gather of 2 size(params) bytes. Sharded:
      three all-to-alls of size(params) bytes.

    Example:
      >>> import jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> clock = jd.clock.speeds([1.0, 1.0, 1.0, 1.0])
      >>> algorithm = jd.delay_compensated(optax.sgd(0.01), clock=clock, strength=0.1)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.steps(state, jnp.tile(jnp.arange(4.0), (200, 1)))
      >>> print(f"{trainer.readout(state):.1f}, {metrics['mean_staleness'][-1]:.1f} versions stale")
      1.5, 3.0 versions stale

    References:
      Zheng et al., Asynchronous Stochastic Gradient Descent with Delay Compensation, ICML 2017.
      arXiv:1609.08326
    """
    refuse_others("delay_compensated", others)
    check_rule("inner", inner)
    check_clock("delay_compensated", clock)
    if not strength >= 0:
        raise Refused(
            f"strength={strength!r} is not a number of at least 0; write for example strength=0.04"
        )

    def compensated(x: Params, grads: Params, copy: Params) -> Params:
        def of(x: jax.Array, g: jax.Array, copy: jax.Array) -> jax.Array:
            return g + jnp.asarray(strength, g.dtype) * g * g * (x - copy)

        return jax.tree.map(of, x, grads, copy)

    return served(
        make_server(inner, server, workers=clock.size, gradient=compensated),
        clock,
        method="delay_compensated",
        parts=2,
        pushed=lambda grads, copy: (grads, copy),
    )

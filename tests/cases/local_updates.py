"""Cases of the methods with many steps between two messages."""

import optax
import twins

import jaxdist as jd
from cases.base import Case


def _every(period):
    return lambda t: f"case {int((t + 1) % period == 0)}"


def _slow(**options):
    return Case(
        make=lambda W: jd.slow_momentum(optax.sgd(0.1, momentum=0.5), period=3, **options),
        twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), period=3, **options),
        branch=_every(3),
    )


def _block(*, momentum=None, **options):
    return Case(
        make=lambda W: jd.block_momentum(
            optax.sgd(0.1, momentum=0.5), period=4, momentum=momentum, **options
        ),
        twin=lambda W: dict(
            inner=twins.momentum(0.1, 0.5),
            period=4,
            momentum=1 - 1 / W if momentum is None else momentum,
            **{"block_learning_rate": 1.0, **options},
        ),
        branch=_every(4),
    )


CASES: dict[str, dict[str, Case]] = {
    "local_sgd": {
        "period 3": Case(
            make=lambda W: jd.local_sgd(optax.sgd(0.1, momentum=0.5), period=3),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), period=3),
            branch=lambda t: f"case {int((t + 1) % 3 == 0)}",
        ),
    },
    "diloco": {
        "nesterov": Case(
            make=lambda W: jd.diloco(
                optax.sgd(0.1, momentum=0.5), optax.sgd(0.7, momentum=0.9, nesterov=True), period=4
            ),
            twin=lambda W: dict(
                inner=twins.momentum(0.1, 0.5), outer=twins.momentum(0.7, 0.9, True), period=4
            ),
            branch=lambda t: f"case {int((t + 1) % 4 == 0)}",
        ),
    },
    "slow_momentum": {
        "slow": _slow(slow_learning_rate=0.8, slow_momentum=0.6, learning_rate=0.1),
    },
    "block_momentum": {
        "the paper's momentum": _block(),
        "nesterov": _block(momentum=0.6, block_learning_rate=0.9, nesterov=True),
    },
}

"""Cases of the methods with many steps between two messages."""

import numpy as np
import optax
import twins
from twins.compressed import ef21, error_feedback, gathered, top

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


def _streaming(fragments, groups, *, period=6, compressed=(None, None), **options):
    """Two or three parameters; `groups`: the coordinates of each fragment; `compressed`: a pair."""
    turn = period // len(groups)

    def sent(t):
        delay = options.get("delay", 0)
        step = t + max(delay, 1)  # at which it is applied
        p = (step // turn - 1) % len(groups)
        return f"case {p + 1 if step > delay and step % turn == 0 else 0}"

    return Case(
        make=lambda W: jd.streaming_diloco(
            optax.sgd(0.1, momentum=0.5),
            optax.sgd(0.7, momentum=0.9, nesterov=True),
            period=period,
            fragments=fragments,
            compressor=compressed[0],
            **options,
        ),
        twin=lambda W: dict(
            inner=twins.momentum(0.1, 0.5),
            outer=twins.momentum(0.7, 0.9, True),
            period=period,
            fragments=groups,
            mean=compressed[1],
            **options,
        ),
        branch=sent,
        parts=(1, 2, 2),
    )


def _federated(*, part=None, outer=(None, None), weights=None, correction=(None, None)):
    """Rounds of three steps; `part`: how many take part; pairs: the package's object, the twin's."""

    def cohorts(W):
        drawn = jd.cohort(W, W, 7, clients_per_round=part)
        return [np.flatnonzero(drawn.delivers(r)).tolist() for r in range(20)]

    def weights_of(W):
        return None if weights is None else 1.0 + np.arange(W) % 4

    return Case(
        make=lambda W: jd.federated(
            optax.sgd(0.1, momentum=0.5),
            outer[0],
            local_steps=3,
            clients_per_round=part,
            client_weights=weights_of(W),
            correction=correction[0],
            seed=7,
        ),
        twin=lambda W: dict(
            inner=twins.momentum(0.1, 0.5),
            outer=outer[1],
            local_steps=3,
            cohorts=cohorts(W),
            client_weights=weights_of(W),
            correction=correction[1],
        ),
        branch=_every(3),
    )


CASES: dict[str, dict[str, Case]] = {
    "local_sgd": {
        "period 3": Case(
            make=lambda W: jd.local_sgd(optax.sgd(0.1, momentum=0.5), period=3),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), period=3),
            branch=_every(3),
        ),
        "after four steps": Case(
            make=lambda W: jd.local_sgd(optax.sgd(0.1, momentum=0.5), period=3, start=4),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), period=3, start=4),
            branch=lambda t: (f"case {int(t < 4)}", f"case {int((t + 1) % 3 == 0)}"),
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
            branch=_every(4),
        ),
        "ef21 of top_k": Case(
            make=lambda W: jd.diloco(
                optax.sgd(0.1),
                optax.sgd(0.7),
                period=2,
                compressor=jd.compress.ef21(jd.compress.top_k(0.4)),
            ),
            twin=lambda W: dict(
                inner=twins.sgd(0.1),
                outer=twins.sgd(0.7),
                period=2,
                mean=ef21(gathered(top(2))),
            ),
            branch=lambda t: f"case {int((t + 1) % 2 == 0)}",
        ),
    },
    "streaming_diloco": {
        "late, blended": _streaming(2, [[0, 3, 4], [1, 2]], delay=2, blend=0.4),
        "at once, three fragments": _streaming(3, [[0], [1, 2], [3, 4]]),
        "a fragment a step, by label": _streaming(
            ["b", "a", "b"], [[1, 2], [0, 3, 4]], period=2, delay=1, blend=0.5
        ),
        "late, error feedback of top_k": _streaming(
            3,
            [[0], [1, 2], [3, 4]],
            delay=3,
            blend=0.5,
            compressed=(
                jd.compress.error_feedback(jd.compress.top_k(0.5)),
                error_feedback(gathered(top(1))),
            ),
        ),
    },
    "federated": {
        "scaffold, four of all": _federated(part=4, correction=(jd.scaffold(), twins.scaffold())),
        "averaging": _federated(),
        "prox, by weight": _federated(
            part=5, weights=True, correction=(jd.fedprox(0.3), twins.fedprox(0.3))
        ),
        "a server with momentum, scaffold": _federated(
            outer=(optax.sgd(0.8, momentum=0.5), twins.momentum(0.8, 0.5)),
            correction=(jd.scaffold(), twins.scaffold()),
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

"""Cases of the methods in which workers are stale."""

import functools

import jax
import numpy as np
import optax
import twins

import jaxdist as jd
from cases.base import Case, over

MOMENTUM = dict(ours=optax.sgd(0.1, momentum=0.5), twin=twins.momentum(0.1, 0.5))
ADAGRAD = dict(ours=optax.adagrad(0.1), twin=twins.adagrad(0.1))
MISSED = 0.6


def clock(W):
    """Everybody has a speed of its own, no two in a simple ratio: no ties, ever new orders."""
    return jd.clock.speeds(np.sqrt(np.linspace(1.0, 11.0, W)).tolist())


@functools.cache
def arrivals(W, bound=None, steps=40):
    """Who arrives in each step, in their order: what a twin takes for time."""
    own = clock(W)
    tick, times = jax.jit(functools.partial(own.tick, bound=bound)), own.start()
    lists = []
    for _ in range(steps):
        one, times = tick(times)
        rank = np.asarray(one.rank)
        lists.append([int(i) for i in np.argsort(rank) if rank[i] < W])
    return lists


def _served(make, rule, server="replicated", bound=None, **arguments):
    """A method on a server; where the server stands is not the twin's business."""
    told = dict(arguments) if bound is None else dict(arguments, bound=bound)
    return Case(
        make=lambda W: make(rule["ours"], clock=clock(W), server=server, **told),
        twin=lambda W: dict(inner=rule["twin"], arrivals=arrivals(W, bound), **told),
    )


def _shown(W, steps=40, dimension=5):
    """Which components a worker of hogwild reads at each step: from the keys of a run of seed 0."""

    def row(t, i):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), np.uint32(2**32 - 1))
        (leaf,) = jax.random.split(jax.random.fold_in(key, i), 1)
        return ~jax.random.bernoulli(leaf, MISSED, (dimension,))

    rows = jax.vmap(jax.vmap(row, (None, 0)), (0, None))
    return np.asarray(rows(np.arange(steps, dtype=np.int32), np.arange(W, dtype=np.int32)))


def _pairs(W):
    return jd.topology.random_matching(W, 3, seed=0)


CASES: dict[str, dict[str, Case]] = {
    "downpour": {
        "replicated": _served(jd.downpour, ADAGRAD),
        "sharded": _served(jd.downpour, ADAGRAD, "sharded"),
        "sums": _served(jd.downpour, MOMENTUM, push_every=2, pull_every=3),
    },
    "stale_synchronous": {
        "replicated": _served(jd.stale_synchronous, MOMENTUM, bound=2),
        "sharded": _served(jd.stale_synchronous, MOMENTUM, "sharded", bound=1),
    },
    "delay_compensated": {
        "replicated": _served(jd.delay_compensated, MOMENTUM, strength=0.1),
        "sharded": _served(jd.delay_compensated, MOMENTUM, "sharded", strength=0.1),
    },
    "hogwild": {
        "torn": Case(
            make=lambda W: jd.hogwild(MOMENTUM["ours"], clock=clock(W), missed=MISSED),
            twin=lambda W: dict(inner=MOMENTUM["twin"], arrivals=arrivals(W), shown=_shown(W)),
        ),
    },
    "elastic_averaging": {
        "together": Case(
            make=lambda W: jd.elastic_averaging(MOMENTUM["ours"], period=3, attraction=0.1),
            twin=lambda W: dict(inner=MOMENTUM["twin"], period=3, attraction=0.1),
            branch=lambda t: f"case {int((t + 1) % 3 == 0)}",
        ),
        "by arrivals": Case(
            make=lambda W: jd.elastic_averaging(
                MOMENTUM["ours"], period=2, attraction=0.3, clock=clock(W)
            ),
            twin=lambda W: dict(
                inner=MOMENTUM["twin"], period=2, attraction=0.3, arrivals=arrivals(W)
            ),
        ),
    },
    "pairwise": {
        "by arrivals": Case(
            make=lambda W: jd.pairwise(MOMENTUM["ours"], _pairs(W), clock=clock(W)),
            twin=lambda W: dict(
                inner=MOMENTUM["twin"], matrix=over(_pairs(W)), arrivals=arrivals(W)
            ),
            branch=lambda t: f"case {t % 3}",
        ),
    },
    "delayed": {
        "by 3": Case(
            make=lambda W: jd.delayed(MOMENTUM["ours"], delay=3),
            twin=lambda W: dict(inner=MOMENTUM["twin"], delay=3),
        ),
    },
}

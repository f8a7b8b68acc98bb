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
    """Everybody's gradients take as long as they happen to."""
    return jd.clock.lognormal(W, sigma=0.8, seed=1)


def arrivals(clock, steps=40, bound=None):
    """Who arrives in each step, in their order: what a twin takes for time."""
    tick, times = jax.jit(functools.partial(clock.tick, bound=bound)), clock.start()
    lists = []
    for _ in range(steps):
        one, times = tick(times)
        rank = np.asarray(one.rank)
        lists.append([int(i) for i in np.argsort(rank) if rank[i] < clock.size])
    return lists


def _served(make, rule, bound=None, **arguments):
    """The method on a replicated and on a sharded server: one twin."""

    def twin(W):
        told = dict(arguments) if bound is None else dict(arguments, bound=bound)
        return dict(inner=rule["twin"], arrivals=arrivals(clock(W), bound=bound), **told)

    given = dict(arguments) if bound is None else dict(arguments, bound=bound)
    return {
        server: Case(
            make=lambda W, server=server: make(
                rule["ours"], clock=clock(W), server=server, **given
            ),
            twin=twin,
        )
        for server in ("replicated", "sharded")
    }


def _shown(W, steps=40, dimension=5):
    """Which components a worker of hogwild reads at each step: from the keys of a run of seed 0."""

    def row(t, i):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), np.uint32(2**32 - 1))
        (leaf,) = jax.random.split(jax.random.fold_in(key, i), 1)
        return ~jax.random.bernoulli(leaf, MISSED, (dimension,))

    rows = jax.vmap(jax.vmap(row, (None, 0)), (0, None))
    return np.asarray(rows(np.arange(steps, dtype=np.int32), np.arange(W, dtype=np.int32)))


def _hogwild(server):
    return Case(
        make=lambda W: jd.hogwild(MOMENTUM["ours"], clock=clock(W), missed=MISSED, server=server),
        twin=lambda W: dict(inner=MOMENTUM["twin"], arrivals=arrivals(clock(W)), shown=_shown(W)),
    )


def _pairwise(pairs):
    return Case(
        make=lambda W: jd.pairwise(MOMENTUM["ours"], pairs(W), clock=jd.clock.constant(W)),
        twin=lambda W: dict(inner=MOMENTUM["twin"], matrix=over(pairs(W))),
        branch=lambda t: f"case {t % pairs(8).period}",
    )


def _pairwise_by_arrivals(pairs):
    return Case(
        make=lambda W: jd.pairwise(MOMENTUM["ours"], pairs(W), clock=clock(W)),
        twin=lambda W: dict(
            inner=MOMENTUM["twin"], matrix=over(pairs(W)), arrivals=arrivals(clock(W))
        ),
        branch=lambda t: f"case {t % pairs(8).period}",
    )


def _elastic(period):
    return Case(
        make=lambda W: jd.elastic_averaging(MOMENTUM["ours"], period=period, attraction=0.1),
        twin=lambda W: dict(inner=MOMENTUM["twin"], period=period, attraction=0.1),
        branch=lambda t: f"case {int((t + 1) % period == 0)}" if period > 1 else None,
    )


CASES: dict[str, dict[str, Case]] = {
    "downpour": {
        **_served(jd.downpour, ADAGRAD),
        **{
            f"{server}, sums": case
            for server, case in _served(jd.downpour, MOMENTUM, push_every=2, pull_every=3).items()
        },
    },
    "stale_synchronous": {
        **_served(jd.stale_synchronous, MOMENTUM, bound=2),
        "bound 0": _served(jd.stale_synchronous, ADAGRAD, bound=0)["replicated"],
    },
    "delay_compensated": _served(jd.delay_compensated, MOMENTUM, strength=0.1),
    "hogwild": {server: _hogwild(server) for server in ("replicated", "sharded")},
    "elastic_averaging": {
        "period 3": _elastic(3),
        "period 1": _elastic(1),
        "by arrivals": Case(
            make=lambda W: jd.elastic_averaging(
                MOMENTUM["ours"], period=2, attraction=0.3, clock=clock(W)
            ),
            twin=lambda W: dict(
                inner=MOMENTUM["twin"], period=2, attraction=0.3, arrivals=arrivals(clock(W))
            ),
        ),
    },
    "pairwise": {
        "by arrivals": _pairwise_by_arrivals(lambda W: jd.topology.random_matching(W, 3, seed=0)),
        "all at once": _pairwise(lambda W: jd.topology.random_matching(W, 3, seed=0)),
    },
    "delayed": {
        f"by {delay}": Case(
            make=lambda W, delay=delay: jd.delayed(MOMENTUM["ours"], delay=delay),
            twin=lambda W, delay=delay: dict(inner=MOMENTUM["twin"], delay=delay),
        )
        for delay in (3, 0)
    },
}

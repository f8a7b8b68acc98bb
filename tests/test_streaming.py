"""Streaming DiLoCo and slow momentum: what the laws of all methods do not say."""

import re

import cases
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_conformance import problem, trajectory

import jaxdist as jd


def test_one_fragment_at_once_is_diloco(x64):
    rules = optax.sgd(0.1, momentum=0.5), optax.sgd(0.7, momentum=0.9, nesterov=True)
    whole = jd.diloco(*rules, period=4)
    one = jd.streaming_diloco(*rules, period=4, fragments=1)
    runs = [trajectory(a, problem(4), devices=2, steps=13)[:2] for a in (whole, one)]
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(period=5), "period=5 is not a multiple of the 2 fragments; write period="),
        (dict(delay=4), "delay=4 is not below period=4"),
        (dict(blend=1.0), "blend=1.0"),
        (dict(fragments=4), "fragments=4 of parameters with 2 leaves"),
        (dict(fragments=["a", "b", "a", "b"]), "one label for each leaf"),
        (dict(fragments=0), "fragments=0"),
    ],
)
def test_fragments_that_can_not_work_are_refused(options, said):
    def start():
        arguments = {"period": 4, "fragments": 2, **options}
        algorithm = jd.streaming_diloco(optax.sgd(0.1), optax.sgd(0.7), **arguments)
        jd.execute(algorithm, cases.loss, workers=4).init([jnp.ones(2), jnp.ones(3)])

    with pytest.raises(ValueError, match=re.escape(said)):
        start()


def test_slow_momentum_counts_in_gradients_where_the_learning_rate_changes(x64, standard_promotion):
    data, period, a, b = problem(4), 3, 0.8, 0.6

    def rate(step):
        return 0.1 / (1 + 0.2 * step)

    algorithm = jd.slow_momentum(
        optax.sgd(rate),
        period=period,
        learning_rate=rate,
        slow_learning_rate=a,
        slow_momentum=b,
    )
    readouts = trajectory(algorithm, data, devices=2, steps=12)[1]
    z, u, x = np.ones(5), np.zeros(5), np.ones((4, 5))
    for t in range(12):
        x = x - rate(t) * data.gradient(t, x)
        if (t + 1) % period == 0:
            u = b * u + (z - x.mean(0)) / rate(t)
            z = z - a * rate(t) * u
            x = np.tile(z, (4, 1))
        np.testing.assert_allclose(readouts[t + 1], z, rtol=0, atol=1e-7)

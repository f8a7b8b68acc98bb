"""A method inside an optax loop of one's own takes the steps that the trainer takes: the whole catalogue."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_conformance import batch, by_default, mesh_of, problem, shared_trainer

import jaxdist as jd
from jaxdist import worker
from jaxdist.errors import Refused

W = 8


def own_loop(algorithm, data, steps, *, parts=(), value=True):
    """The points before every step of a loop over pmap, as somebody writes it who has optax."""
    rule = jd.as_optax(algorithm)

    def init(_):
        params = cases.start(data.dimension, jnp.float64, parts=parts)
        return worker.vary((params, rule.init(params)))

    def step(carry, batch):
        params, state = carry

        def loss(params):
            return cases.loss(params, batch, None)[0]

        found, grads = jax.value_and_grad(loss)(params)
        seen = {"value": found, "value_fn": loss} if value else {}
        updates, state = rule.update(grads, state, params, **seen)
        return optax.apply_updates(params, updates), state

    start, go = (jax.pmap(f, axis_name="worker", devices=jax.devices()[:W]) for f in (init, step))
    carry, points = start(jnp.zeros(W)), []
    for t in range(steps):
        points.append(cases.flat(carry[0]))
        carry = go(carry, batch(data, t, np.float64))
    return np.stack(points)


def trainers(trainer, data, steps, *, parts=()):
    """The points before every step of the trainer."""
    state, points = trainer.init(cases.start(data.dimension, jnp.float64, parts=parts)), []
    for t in range(steps):
        points.append(cases.flat(trainer.gradient_at(state)))
        state, _ = trainer.step(state, batch(data, t, np.float64))
    return np.stack(points)


# Those who do not deliver have a gradient all the same in a loop of one's own: it may not be pushed.
@by_default([("downpour", "sums")], cases.ALL)
def test_as_optax_goes_where_the_trainer_goes(x64, name, label):
    case, data = cases.case(name, label), problem(W)
    trainer = shared_trainer(name, label, workers=W, devices=W)
    expected = trainers(trainer, data, 10, parts=case.parts)
    points = own_loop(case.make(W), data, 10, parts=case.parts)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)
    assert np.ptp(points, axis=0).min() > 1e-3


def test_as_optax_draws_what_the_trainer_draws(x64):
    algorithm, data = (
        jd.all_reduce(optax.sgd(0.1), compressor=jd.compress.random_k(0.4)),
        problem(W),
    )
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(W))
    expected = trainers(trainer, data, 5)
    np.testing.assert_allclose(own_loop(algorithm, data, 5), expected, rtol=0, atol=1e-10)


def test_as_optax_of_faulty_leaves_out_who_is_away(x64):
    lost = jd.faults.workers_lost([2, 5], stop=10**6)
    algorithm, data = jd.faulty(jd.local_sgd(optax.sgd(0.1), period=2), lost), problem(W)
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(W))
    points = own_loop(algorithm, data, 6)
    np.testing.assert_allclose(points, trainers(trainer, data, 6), rtol=0, atol=1e-10)
    assert np.ptp(points[:, [2, 5]], axis=0).max() == 0


def test_a_search_along_the_loss_asks_for_the_loss(x64):
    with pytest.raises(Refused, match=r"jd.lbfgs .* value=loss, value_fn=loss_of_params"):
        own_loop(jd.lbfgs(), problem(W), 1, value=False)

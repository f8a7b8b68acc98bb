"""How much the workers' gradients differ: against NumPy, against the truth, and what it does to a rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

import jaxdist as jd


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


def loss(x, batch, key):
    r = x - batch["b"]
    return 0.5 * jnp.dot(r, jnp.dot(batch["A"], r)), {}


def tilted(x, slope, key):
    """A loss whose gradient is the batch."""
    return sum(jnp.sum(a * b) for a, b in zip(x, slope, strict=True)), {}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_reported_scale_and_gain_are_those_of_the_workers_gradients(x64, devices):
    data, decay = twins.quadratic(8, 5, seed=3, noise=0.3), 0.7
    measured = jd.execute(
        jd.noise_scale(optax.sgd(0.1), decay=decay, examples_per_worker=32), loss, workers=8,
        mesh=mesh_of(devices),
    )  # fmt: skip
    scaled = jd.execute(
        jd.adascale(optax.sgd(0.1), decay=decay), loss, workers=8, mesh=mesh_of(devices)
    )
    one, two = measured.init(jnp.full(5, 3.0)), scaled.init(jnp.full(5, 3.0))
    reported = []
    noise = signal = each = whole = tau = 0.0
    for t in range(12):
        G = data.gradient(t, np.asarray(measured.gradient_at(one)))
        variance = G.var(0, ddof=1).sum()
        noise = decay * noise + variance
        signal = decay * signal + (G.mean(0) ** 2).sum() - variance / 8
        one, metrics = measured.step(one, data.arrays(t))
        expected = 32 * noise / signal if signal > 0 else np.inf
        np.testing.assert_allclose(metrics["noise_scale"], expected, rtol=1e-10)
        reported.append(expected)

        G = data.gradient(t, np.asarray(scaled.gradient_at(two)))
        each = decay * each + (G**2).sum(1).mean()
        whole = decay * whole + (G.mean(0) ** 2).sum()
        tau += min(each / whole, 8)
        two, metrics = scaled.step(two, data.arrays(t))
        np.testing.assert_allclose(metrics["gain"], min(each / whole, 8), rtol=1e-10)
        np.testing.assert_allclose(metrics["invariant_steps"], tau, rtol=1e-10)
    assert np.isfinite(reported).sum() > 5


def test_the_noise_scale_is_near_the_one_that_the_noise_was_made_with():
    draw = np.random.default_rng(0)
    truth = [draw.normal(size=(20,)), draw.normal(size=(3, 4))]
    batches = [(g + 2.0 * draw.normal(size=(300, 4, *g.shape))).astype(np.float32) for g in truth]
    trainer = jd.execute(jd.noise_scale(optax.sgd(0.0), decay=0.995), tilted, workers=4)
    state = trainer.init([jnp.zeros(g.shape) for g in truth])
    _, metrics = trainer.steps(state, batches)
    expected = 4.0 * 32 / sum((g**2).sum() for g in truth)
    np.testing.assert_allclose(metrics["noise_scale"][-1], expected, rtol=0.15)


def gain_of(slopes):
    trainer = jd.execute(jd.adascale(optax.sgd(0.1)), tilted, workers=4)
    state = trainer.init([jnp.zeros(2)])
    state, metrics = trainer.step(state, [np.asarray(slopes, np.float32)])
    return float(metrics["gain"]), np.asarray(trainer.readout(state)[0])


def test_the_gain_is_one_for_equal_gradients_and_the_workers_for_noise():
    assert gain_of([[1, 2]] * 4)[0] == 1.0
    gain, x = gain_of([[1, 0], [-1, 0], [0, 1], [0, -0.9]])
    assert gain == 4.0
    np.testing.assert_allclose(x, [0.0, -0.1 * 4 * 0.025], atol=1e-7)
    assert gain_of([[0, 0]] * 4)[0] == 1.0


def test_steps_worth_of_one_worker_take_as_far_with_eight(x64):
    """Noise far above the signal: 8 workers do 8 steps' worth in one, with the rate of one worker."""
    draw, d, steps = np.random.default_rng(1), 50, 400

    def pulled(x, noise, key):
        return 0.5 * jnp.dot(x, x) + jnp.dot(noise, x), {}

    def run(workers):
        trainer = jd.execute(
            jd.adascale(optax.sgd(0.01)), pulled, workers=workers, mesh=mesh_of(min(workers, 2))
        )
        state, taken, done = trainer.init(jnp.full(d, 3.0)), 0, 0.0
        while done < steps:
            state, metrics = trainer.step(state, draw.normal(size=(workers, d)) * 10.0)
            taken, done = taken + 1, float(metrics["invariant_steps"])
        return taken, float(jnp.mean(trainer.readout(state) ** 2))

    (alone, far), (together, near) = run(1), run(8)
    assert alone == steps
    assert together < steps / 4
    assert 0.5 < near / far < 2


def test_scaled_rates_start_at_one_workers_and_end_at_the_rules(standard_promotion):
    for rule, factor in ((jd.scaling.linear, 9), (jd.scaling.square_root, 3)):
        rate = rule(0.2, 9, warmup_steps=40)
        ramp = 0.2 * (1 + (factor - 1) * np.minimum(np.arange(60) / 40, 1))
        np.testing.assert_allclose([rate(t) for t in range(60)], ramp, rtol=1e-6)
        falling = optax.exponential_decay(0.2, 10, 0.5)
        rate = rule(falling, 9, warmup_steps=0)
        np.testing.assert_allclose([rate(t) / falling(t) for t in (0, 7, 30)], factor, rtol=1e-6)
        x = jnp.ones(())
        inner = optax.sgd(rule(0.2, 9, warmup_steps=40))  # as optax calls it: a traced int32
        updates, _ = jax.jit(inner.update)(x, inner.init(x))
        np.testing.assert_allclose(updates, -0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jd.noise_scale(optax.sgd(0.1), decay=1.0), "decay=1.0: expected"),
        (lambda: jd.adascale(optax.sgd(0.1), decay=-0.5), "decay=-0.5"),
        (lambda: jd.adascale(optax.sgd(0.1), schedule=0.1), "schedule=0.1 is not a function"),
        (lambda: jd.adascale(0.1), "inner=0.1 is not an optax"),
        (lambda: jd.scaling.linear(0.1, 0, warmup_steps=5), "workers=0, expected"),
        (lambda: jd.scaling.square_root(0.1, 4, warmup_steps=-1), "warmup_steps=-1, expected"),
    ],
)
def test_what_is_no_scale_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_worker_has_nobody_to_differ_from():
    trainer = jd.execute(jd.noise_scale(optax.sgd(0.1)), loss, workers=1)
    with pytest.raises(ValueError, match="there is one worker; write workers=2"):
        trainer.init(jnp.ones(5))

"""Where methods with local steps come to rest on quadratics, against the closed form."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

import jaxdist as jd

LR, STEPS, WORKERS, DIMENSION = 0.1, 5, 4, 5
DATA = twins.quadratic(WORKERS, DIMENSION, seed=11)  # no noise: the same loss at every step


def drift(extra=0.0):
    """For each worker S_i = 1 - (1 - lr (A_i + extra))^H, and where its H steps lead: z + S_i (c_i - z).

    c_i is the minimizer of the worker's own loss with the pull of strength `extra` to z added; for
    extra = 0 it is b_i, and H steps from z end in b_i + (1 - lr A_i)^H (z - b_i).
    """
    eye = np.eye(DIMENSION)
    pulled = DATA.A + extra * eye
    S = eye - np.stack([np.linalg.matrix_power(eye - LR * A, STEPS) for A in pulled])
    # c_i - z = (A_i + extra)^-1 A_i (b_i - z)
    toward = S @ np.linalg.solve(pulled, DATA.A)
    return np.linalg.solve(toward.sum(0), np.einsum("wij,wj->i", toward, DATA.b))


def rest(algorithm, rounds=200):
    trainer = jd.execute(algorithm, cases.loss, workers=WORKERS)
    state = trainer.init(jnp.zeros(DIMENSION))
    batches = jax.tree.map(lambda x: np.broadcast_to(x, (STEPS * rounds, *x.shape)), DATA.arrays(0))
    state, _ = trainer.steps(state, batches)
    return np.asarray(trainer.readout(state))


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: jd.local_sgd(optax.sgd(LR), period=STEPS), drift),
        (lambda: jd.federated(optax.sgd(LR), local_steps=STEPS), drift),
        (lambda: jd.diloco(optax.sgd(LR), optax.sgd(0.7), period=STEPS), drift),
        (
            lambda: jd.diloco(optax.sgd(LR), optax.sgd(0.7, 0.5, nesterov=True), period=STEPS),
            drift,
        ),
        (
            lambda: jd.slow_momentum(
                optax.sgd(LR), period=STEPS, learning_rate=LR, slow_momentum=0.4
            ),
            drift,
        ),
        (lambda: jd.block_momentum(optax.sgd(LR), period=STEPS, momentum=0.4), drift),
        (
            lambda: jd.federated(optax.sgd(LR), local_steps=STEPS, correction=jd.fedprox(0.8)),
            lambda: drift(0.8),
        ),
        (
            lambda: jd.federated(optax.sgd(LR), local_steps=STEPS, correction=jd.scaffold()),
            lambda: DATA.minimiser,
        ),
    ],
    ids=["local_sgd", "fedavg", "diloco", "nesterov", "slowmo", "bmuf", "fedprox", "scaffold"],
)
def test_the_fixed_point_is_the_closed_form(x64, make, where):
    np.testing.assert_allclose(rest(make()), where(), rtol=0, atol=1e-10)


def test_drift_moves_the_fixed_point_and_a_pull_moves_it_back():
    far, near = (np.linalg.norm(drift(mu) - DATA.minimiser) for mu in (0.0, 0.8))
    assert 0.01 < near < far

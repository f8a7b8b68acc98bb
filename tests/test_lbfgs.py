"""L-BFGS over workers: scipy's optimum on real data, the Wolfe conditions, memory that falls as 1/W."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import twins
from sklearn.datasets import load_breast_cancer

import jaxdist as jd

PENALTY = 1e-2
METHODS = pytest.mark.parametrize("line_search", ["wolfe", "armijo"])


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


def logistic(x, batch, key):
    """Of 569 examples split unevenly; the weights make the mean over workers the mean over all."""
    margins = batch["sign"] * jnp.dot(batch["features"], x)
    losses = batch["weight"] * jnp.logaddexp(0.0, -margins)
    return losses.sum() + 0.5 * PENALTY * jnp.dot(x, x), {}


def breast_cancer(workers):
    features, label = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    features = np.pad(features, ((0, 0), (0, 1)), constant_values=1.0)
    fill = -len(label) % workers
    weight = np.pad(np.full(len(label), workers / len(label)), (0, fill))
    rows = dict(
        features=np.pad(features, ((0, fill), (0, 0))),
        sign=np.pad(2.0 * label - 1, (0, fill)),
        weight=weight,
    )
    return {k: v.reshape(workers, -1, *v.shape[1:]) for k, v in rows.items()}


@pytest.fixture
def scipys(x64):
    """The optimum to machine precision, and how many steps scipy's L-BFGS takes to a tolerance."""
    whole = jax.tree.map(lambda x: jnp.asarray(x[0]), breast_cancer(1))
    both = jax.jit(jax.value_and_grad(lambda x: logistic(x, whole, None)[0]))
    find = partial(scipy.optimize.minimize, both, np.zeros(31), jac=True, method="L-BFGS-B")
    best = find(options=dict(gtol=1e-12, ftol=0, maxcor=10)).x
    return best, find(options=dict(gtol=1e-9, ftol=0, maxcor=10)).nit, both


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_reaches_scipys_optimum_in_about_as_many_steps(scipys, workers):
    best, steps, both = scipys
    trainer = jd.execute(jd.lbfgs(memory=10), logistic, workers=workers, mesh=mesh_of(workers))
    state, batch = trainer.init(jnp.zeros(31)), trainer.place(breast_cancer(workers))
    taken = trials = 0
    while np.abs(both(trainer.readout(state))[1]).max() > 1e-9:
        state, metrics = trainer.step(state, batch)
        taken, trials = taken + 1, trials + int(metrics["trials"])
        assert taken <= 1.5 * steps
    np.testing.assert_allclose(trainer.readout(state), best, rtol=0, atol=1e-6)
    assert trials < 1.5 * taken


@METHODS
def test_every_step_satisfies_the_conditions_of_its_line_search(x64, line_search):
    def uneven(x, batch, key):
        valley = jnp.sum(10.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)
        return valley * batch, {}

    # The mean of the weights is one: together the workers have Rosenbrock's function.
    batch = np.array([0.2, 0.4, 1.6, 1.8])
    both = jax.jit(jax.value_and_grad(lambda x: uneven(x, 1.0, None)[0]))
    trainer = jd.execute(jd.lbfgs(line_search=line_search), uneven, workers=4, mesh=mesh_of(2))
    state = trainer.init(jnp.array([-1.2, 1.0, -0.5, 0.8, 1.3]))
    lengths = []
    for _ in range(60):
        x, (F, g) = np.asarray(trainer.readout(state)), both(trainer.readout(state))
        if np.abs(g).max() < 1e-6:
            break
        state, metrics = trainer.step(state, batch)
        moved = np.asarray(trainer.readout(state)) - x
        after, slope = both(trainer.readout(state))
        assert after <= F + 1e-4 * np.dot(g, moved) + 1e-12
        if line_search == "wolfe":
            assert abs(np.dot(slope, moved)) <= 0.9 * abs(np.dot(g, moved)) + 1e-12
        lengths.append(float(metrics["step_length"]))
    np.testing.assert_allclose(trainer.readout(state), 1.0, atol=1e-6)
    assert set(lengths) > {1.0}


@METHODS
def test_stays_where_it_is_once_nothing_is_lower(line_search):
    data = twins.quadratic(4, 5, seed=3)
    batch = {k: v.astype(np.float32) for k, v in data.arrays(0).items()}

    def loss(x, batch, key):
        r = x - batch["b"]
        return 0.5 * jnp.dot(r, jnp.dot(batch["A"], r)), {}

    trainer = jd.execute(jd.lbfgs(line_search=line_search), loss, workers=4)
    state = trainer.init(jnp.full(5, 100.0))
    for _ in range(60):
        state, _ = trainer.step(state, batch)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    # Losses alone tell points apart to the root of the precision, slopes to the precision.
    atol = 2e-6 if line_search == "wolfe" else 2e-3
    np.testing.assert_allclose(trainer.readout(state), data.minimiser, rtol=0, atol=atol)


def test_a_loss_that_is_not_finite_is_stepped_back_from(x64):
    def barrier(x, batch, key):
        return jnp.sum(-jnp.log(x) + batch * x), {}  # nan where x <= 0

    trainer = jd.execute(jd.lbfgs(), barrier, workers=2)
    state = trainer.init(jnp.full(3, 0.1))
    for _ in range(25):
        state, _ = trainer.step(state, np.array([1.0, 3.0]))
    np.testing.assert_allclose(trainer.readout(state), 0.5, atol=1e-6)


def test_history_per_device_falls_as_one_over_the_workers():
    size, memory = 4096, 10

    def held(workers):
        trainer = jd.execute(
            jd.lbfgs(memory=memory),
            lambda x, b, key: (jnp.sum((x - b) ** 2), {}),
            workers=workers,
            mesh=mesh_of(workers),
        )
        state = trainer.init(jnp.zeros(size))
        batch = trainer.place(np.zeros((workers, size), np.float32))
        compiled = trainer.compiled.lower(state, batch).compile()
        return compiled.memory_analysis()

    kept = {W: held(W) for W in (1, 2, 8)}
    for W, analysis in kept.items():
        state = 4 * size * (1 + (2 * memory + 2) / W)
        assert abs(analysis.alias_size_in_bytes - state) < 100
    assert kept[8].peak_memory_in_bytes < kept[1].peak_memory_in_bytes / 3


def test_only_two_numbers_travel_in_a_trial():
    trainer = jd.execute(jd.lbfgs(), lambda x, b, key: (jnp.sum((x - b) ** 2), {}), workers=8)
    lowered = trainer.compiled.lower(trainer.init(jnp.zeros(13)), np.zeros((8, 13), np.float32))
    found = jd.audit.collectives(lowered)
    assert [(c.kind, c.shape) for c in found if c.loop] == [("all_reduce", (2,))]
    kinds = sorted((c.kind, c.shape) for c in found if not c.loop)
    own, gram = ("all_gather", (1, 2)), ("all_reduce", (23 * 23 + 1,))
    assert kinds == [own, ("all_reduce", ()), gram, ("reduce_scatter", (16,))]


def test_leaves_of_several_precisions_keep_theirs(x64):
    target = {"w": np.float16(0.5), "b": np.float64(0.25), "m": np.full((2, 3), 0.75, np.float32)}

    def loss(params, scale, key):
        apart = jax.tree.map(
            lambda p, t: jnp.sum((p.astype(float) - float(np.max(t))) ** 2), params, target
        )
        return scale * sum(jax.tree.leaves(apart)), {}

    trainer = jd.execute(jd.lbfgs(memory=2), loss, workers=2)
    start = jax.tree.map(jnp.zeros_like, target)
    state = trainer.init(start)
    for _ in range(5):
        state, _ = trainer.step(state, np.array([0.5, 1.5]))
    end = trainer.readout(state)
    assert jax.tree.map(lambda x: x.dtype, end) == jax.tree.map(lambda x: x.dtype, start)
    jax.tree.map(lambda x, t: np.testing.assert_allclose(x, t, atol=1e-3), end, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(memory=0), "memory=0"),
        (dict(trials=0), "trials=0"),
        (dict(line_search="exact"), "line_search='exact' is unknown; write one of wolfe, armijo"),
        (dict(decrease=0.95), "0 < decrease < curvature < 1"),
    ],
)
def test_what_makes_no_search_is_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        jd.lbfgs(**options)

"""On every compressed way what is not finite arrives as such, at everybody, and spoils one array at most."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from compressed_methods import METHODS, mesh_of
from jax import lax

import jaxdist as jd
from jaxdist import compensated, mixing, reduction, worker
from jaxdist.compress import CATALOGUE

W, SICK = 4, 1
C = jd.compress
VALUES = np.array([0.5, np.nan, np.inf, -np.inf], np.float32)
WAYS = {
    f"{memory.__name__} {name}": lambda memory=memory, make=make: memory(make())
    for name, make in CATALOGUE.items()
    for memory in (C.ef21, C.error_feedback, C.contractive)
} | {"power_sgd": lambda: C.power_sgd(1)}
# With one memory and with another the same payloads travel, in three routes: by default one of each.
ROUTES = {"ef21 int8", "ef21 top_k", "ef21 random_k", "power_sgd"}
LAWS = [pytest.param(way, marks=() if way in ROUTES else pytest.mark.slow) for way in WAYS]


def of_each(function):
    """What `function(tree)` gives every worker, for each of VALUES in the tree of one: [W, 4, ...]."""
    draw = np.random.default_rng(0)
    w, b = (jnp.asarray(draw.normal(size=(W, *s)), jnp.float32) for s in ((6, 4), (5,)))

    def everything(me):
        def one(value):
            spoiled = w[me].at[2, 1].set(jnp.where(me == SICK, value, w[me][2, 1]))
            return worker.vary(function({"w": spoiled, "b": b[me]}))

        return lax.map(one, worker.vary(jnp.asarray(VALUES)))

    algorithm = jd.Algorithm(
        init=lambda params: jd.State(jnp.int32(0), (), everything(worker.index())),
        gradient_at=lambda state: state.local,
        update=lambda grads, state, **_: state,
        readout=lambda state: jnp.zeros(()),
    )
    trainer = jd.execute(algorithm, lambda *_: None, workers=W, mesh=mesh_of(1))
    return jax.tree.map(np.asarray, trainer.init(jnp.zeros(())).local)


def check(got, reached):
    """At the workers that are reached the number is not finite, and NaN where it was; nothing else is."""
    number = got["w"][:, :, 2, 1]
    assert np.isfinite(got["b"]).all()
    assert np.isfinite(got["w"][:, 0]).all()
    assert np.isfinite(got["w"][~reached]).all()
    assert not np.isfinite(number[reached, 1:]).any()
    assert np.isnan(number[reached, 1]).all()


@pytest.mark.parametrize("name", LAWS)
def test_every_reduction_hands_it_to_everybody(name):
    how = reduction.reducer(WAYS[name]())

    def mean(tree):
        key, step = jax.random.key(0), jnp.int32(0)
        return how.mean(tree, how.init(tree), key=key, step=step)[0]

    check(of_each(mean), np.full(W, True))


@pytest.mark.parametrize(
    "name",
    [
        # What travels is what is gathered above: of each kind of payload one by default.
        pytest.param(name, marks=() if name in ("sign", "top_k") else pytest.mark.slow)
        for name in CATALOGUE
    ],
)
def test_every_compressed_exchange_hands_it_to_the_neighbors(name):
    path = jd.topology.path(W)

    def mix(tree):
        key, step = jax.random.key(0), jnp.int32(0)
        compressor = CATALOGUE[name]()
        change, _ = mixing.change_compressed(tree, path, step, compressor=compressor, key=key)
        return compensated.value(change)

    check(of_each(mix), np.array([True, True, True, False]))


def test_a_vote_of_one_that_is_not_a_number_is_nobodys():
    got = of_each(reduction.majority)
    assert np.isnan(got["w"][:, 1]).all()
    assert np.isfinite(got["b"]).all()
    assert np.isfinite(got["w"][:, [0, 2, 3]]).all()  # infinities have a sign


OWN = {
    "choco": lambda c: jd.choco(optax.sgd(0.1), jd.topology.ring(8), c, consensus_step=0.3),
    "sign_majority": lambda c: jd.sign_majority(optax.sgd(0.1)),
    "one_bit_adam": lambda c: jd.one_bit_adam(0.1, warmup_steps=1),
    "dgc": lambda c: jd.dgc(0.1, ratio=0.2),
    "demo": lambda c: jd.demo(optax.sgd(0.1), chunk=5, keep=1),
    "error feedback": lambda c: jd.all_reduce(optax.sgd(0.1), compressor=C.error_feedback(c)),
}


def split_loss(params, batch, key):
    return cases.loss(sum(params.values()), batch, key)


@pytest.mark.parametrize("method", METHODS | OWN)
def test_a_gradient_that_is_not_a_number_shows_in_every_methods_readout(method):
    """From the step on at which it appears, the last of some: the memories are not empty then."""
    batch = {k: v.astype(np.float32) for k, v in twins.quadratic(8, 5, seed=1).arrays(0).items()}
    trainer = jd.execute((METHODS | OWN)[method](C.sign()), split_loss, workers=8, mesh=mesh_of(1))
    state = trainer.init(dict.fromkeys("abc", jnp.ones(5)))
    for t in range(9):
        if t == 3:
            batch["b"][1, 2] = np.nan
        state, _ = trainer.step(state, batch)
        finite = [np.isfinite(leaf).all() for leaf in trainer.readout(state).values()]
        assert all(finite) or t >= 3
    assert not any(finite)

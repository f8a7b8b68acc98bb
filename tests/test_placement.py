"""A trajectory does not depend on how workers, keys and parameters are laid on devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxdist as jd

W = 4


def mesh_of(devices):
    return jax.make_mesh((devices,), ("worker",), devices=jax.devices()[:devices])


def split_mesh():
    return jax.make_mesh((2, 2), ("worker", "fsdp"), devices=jax.devices()[:4])


def dropout(params, batch, key):
    kept = jax.random.bernoulli(key, 0.5, batch.shape)
    return jnp.mean(jnp.square(jnp.where(kept, batch - params[None], 0.0))), {}


@pytest.fixture(params=["rbg", pytest.param("unsafe_rbg", marks=pytest.mark.slow)])
def generator(request):
    with jax.default_prng_impl(request.param):
        yield request.param


def trajectory(algorithm, devices):
    trainer = jd.execute(algorithm, dropout, workers=W, mesh=mesh_of(devices))
    state = trainer.init(jnp.zeros(3))
    for _ in range(4):
        state, _ = trainer.step(state, np.arange(W * 6.0, dtype=np.float32).reshape(W, 2, 3))
    return np.asarray(trainer.readout(state))


METHODS = {
    "gossip": lambda: jd.gossip(optax.sgd(0.1), jd.topology.ring(W)),
    "rounding": lambda: jd.all_reduce(optax.sgd(0.1), compressor=jd.compress.int8()),
    "faults": lambda: jd.faulty(METHODS["gossip"](), jd.faults.link_loss(0.5, seed=0)),
    "clock": lambda: jd.downpour(optax.sgd(0.1), clock=jd.clock.lognormal(W, sigma=0.5, seed=0)),
    "low rank": lambda: jd.all_reduce(optax.sgd(0.1), reducer=jd.compress.power_sgd(1)),
    "shared noise": lambda: jd.all_reduce(
        optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, jax.random.key(1)))
    ),
}  # fmt: skip


BY_DEFAULT = ("gossip", "rounding")
NAMES = [pytest.param(n, marks=[] if n in BY_DEFAULT else [pytest.mark.slow]) for n in METHODS]


@pytest.mark.parametrize("name", NAMES)
def test_any_default_generator_gives_one_trajectory_on_any_layout(
    standard_promotion, generator, name
):
    first, *others = (trajectory(METHODS[name](), devices) for devices in (1, 2, 4))
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5)


def test_a_default_generator_changes_no_trajectory():
    expected = trajectory(METHODS["gossip"](), 2)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(trajectory(METHODS["gossip"](), 2), expected)


def test_keys_of_an_inner_rule_that_follow_the_layout_are_refused(generator):
    noisy = optax.add_noise(0.1, 0.5, jax.random.key(0))
    trainer = jd.execute(
        jd.gossip(optax.chain(noisy, optax.sgd(0.1)), jd.topology.ring(W)), dropout, workers=W
    )
    with pytest.raises(jd.Refused, match=r"key of '?(unsafe_)?rbg.*impl='threefry2x32'"):
        trainer.init(jnp.zeros(3))


def pull(params, batch, key):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params)) * batch.mean(), {}


def specs(tree):
    """Where the parameters of each leaf lie, without the axis of workers."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path): [part for part in x.sharding.spec if part != "worker"]
        for path, x in leaves
        if x.ndim > 1
    }


PARAMS = {"w": jnp.ones((8, 4)), "a": {"w": jnp.ones((8, 4))}}
GIVEN = {
    "one": ({"w": P("fsdp"), "a": {"w": P(None, "fsdp")}}, [[None, "fsdp"], ["fsdp"]]),
    "other": ({"w": P(None, "fsdp"), "a": {"w": P("fsdp")}}, [["fsdp"], [None, "fsdp"]]),
}


def momentum():
    return jd.gossip(optax.sgd(0.1, momentum=0.9), jd.topology.ring(W))


@pytest.mark.parametrize("name", GIVEN)
def test_parameters_whose_paths_end_alike_lie_where_each_is_said_to(name):
    sharding, expected = GIVEN[name]
    trainer = jd.execute(momentum(), pull, workers=W, mesh=split_mesh(), sharding=sharding)
    state = trainer.init(PARAMS)
    state, _ = trainer.step(state, np.ones((W, 2), np.float32))
    found = specs(state.local)
    assert len(found) == 4  # parameters and momentum
    for path, spec in found.items():
        while spec and spec[-1] is None:
            spec.pop()
        assert spec == expected["['a']" not in path], path


def boxed():
    def box(x, names):
        return nn.Partitioned(x, names=names)

    return {"w": box(jnp.ones((8, 4)), ("fsdp", None)), "b": box(jnp.ones((8, 4)), (None, "fsdp"))}


@pytest.mark.parametrize("said_by", ["user", "model"])
def test_lowering_before_init_puts_parameters_where_init_puts_them(said_by):
    def made():
        if said_by == "model":
            return jd.execute(momentum(), pull, workers=W, mesh=split_mesh()), boxed()
        sharding = GIVEN["other"][0]
        trainer = jd.execute(momentum(), pull, workers=W, mesh=split_mesh(), sharding=sharding)
        return trainer, PARAMS

    batch = np.ones((W, 2), np.float32)
    trainer, params = made()
    before = trainer.lower(params, batch).as_text()
    state = trainer.init(params)
    assert before == trainer.compiled.lower(state, trainer.place(batch)).as_text()
    where_it_was = jax.tree.map(lambda x: x.sharding, state)
    for _ in range(3):
        state, _ = trainer.step(state, batch)
        same = jax.tree.map(
            lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, where_it_was
        )
        assert all(jax.tree.leaves(same))
    assert trainer.compiled.jitted._cache_size() == 1


def test_a_second_init_has_a_layout_of_its_own():
    trainer = jd.execute(momentum(), pull, workers=W, mesh=split_mesh())
    batch = np.ones((W, 2), np.float32)

    def box(spec):
        return {"w": nn.Partitioned(jnp.ones((8, 4)), names=spec)}

    for spec in (("fsdp", None), (None, "fsdp"), ("fsdp", None)):
        state, _ = trainer.step(trainer.init(box(spec)), batch)
        found = state.local[0]["w"].value.sharding
        expected = jax.sharding.NamedSharding(trainer.mesh, P("worker", *spec))
        assert found.is_equivalent_to(expected, 3)
    assert trainer.compiled.jitted._cache_size() == 2

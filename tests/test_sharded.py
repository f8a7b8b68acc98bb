"""An optimizer state split over the workers: its size, its rules, and what is refused."""

import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd
from jaxdist.algorithms.base import bytes_sent

SHAPES = {"w": (33, 5), "deep": {"w": (3, 5), "b": (5,)}}


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


def start(dtype=jnp.float32):
    draw = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(structure, [jnp.asarray(draw.normal(size=s), dtype) for s in leaves])


def loss(params, scale, key):
    return sum(
        jnp.sum((scale * x.astype(scale.dtype) - 1) ** 2) for x in jax.tree.leaves(params)
    ), {}


def end(algorithm, *, workers, devices, steps=4, params=None, **options):
    trainer = jd.execute(algorithm, loss, workers=workers, mesh=mesh_of(devices), **options)
    state = trainer.init(start() if params is None else params)
    for t in range(steps):
        state, _ = trainer.step(state, np.linspace(0.5, 2 + t, workers, dtype=np.float32))
    return state, trainer.readout(state)


def no_biases(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: not jax.tree_util.keystr(path).endswith("['b']"), params
    )


RULES = {
    "adamw with a mask by path": lambda: optax.adamw(0.05, weight_decay=0.1, mask=no_biases),
    "a rule for each label": lambda: optax.multi_transform(
        {"fast": optax.adam(0.1), "slow": optax.sgd(0.01)},
        {"w": "fast", "deep": {"w": "slow", "b": "fast"}},
    ),
    "lion on a schedule": lambda: optax.lion(optax.cosine_decay_schedule(0.1, 20)),
    "clipped by the number": lambda: optax.chain(optax.clip(0.1), optax.adagrad(0.1)),
    "accumulated": lambda: optax.MultiSteps(optax.adam(0.1), 2),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "accumulated" else ()) for name in RULES],
)
def test_it_is_all_reduce_for_every_elementwise_rule(standard_promotion, name):
    _, own = end(jd.sharded_all_reduce(RULES[name]()), workers=6, devices=2)
    _, whole = end(jd.all_reduce(RULES[name]()), workers=6, devices=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), own, whole)
    assert (
        max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (own, start())), strict=True))
        > 0.01
    )


def test_workers_spread_over_devices_and_a_pmap_of_ones_own_give_the_same(standard_promotion):
    rule, scales = optax.adam(0.05), np.linspace(0.5, 2, 4, dtype=np.float32)
    _, expected = end(jd.all_reduce(rule), workers=4, devices=1, steps=1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("worker", "fsdp"))
    trainer = jd.execute(jd.sharded_all_reduce(rule), loss, workers=4, mesh=mesh)
    state, _ = trainer.step(trainer.init(start()), scales)
    inner = jd.as_optax(jd.sharded_all_reduce(rule))

    def step(scale):
        params = start()
        grads = jax.grad(lambda params: loss(params, scale, None)[0])(params)
        updates, _ = inner.update(grads, inner.init(params), params)
        return optax.apply_updates(params, updates)

    mapped = jax.pmap(step, axis_name="worker", devices=jax.devices()[:4])(scales)
    for own in (trainer.readout(state), jax.tree.map(lambda x: x[3], mapped)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, expected)


def test_buckets_do_not_change_what_arrives():
    ends = [
        end(jd.sharded_all_reduce(optax.sgd(0.01)), workers=4, devices=4, bucket_bytes=size)[1]
        for size in (0, 1 << 20)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)


def test_low_precision_is_averaged_in_float32_and_stays_low(standard_promotion):
    params = start(jnp.bfloat16)
    algorithm = jd.sharded_all_reduce(optax.sgd(0.1, momentum=0.9))
    state, low = end(algorithm, workers=8, devices=8, params=params)
    assert {x.dtype for x in jax.tree.leaves((state.local, low))} == {jnp.dtype(jnp.bfloat16)}
    trainer = jd.execute(algorithm, loss, workers=8)
    found = jd.audit.collectives(
        trainer.compiled.lower(trainer.init(params), np.ones(8, np.float32))
    )
    sent = {
        kind: sum(c.bytes for c in found if c.kind == kind)
        for kind in ("reduce_scatter", "all_gather")
    }
    assert bytes_sent(algorithm, params, 0, workers=8) == sum(sent.values())
    assert sent["reduce_scatter"] == 2 * 8 * sent["all_gather"]


def test_optimizer_state_per_device_falls_as_one_over_the_workers(standard_promotion):
    size = 1 << 14

    def held(make, workers):
        trainer = jd.execute(
            make(optax.adam(0.1)),
            lambda x, b, key: (jnp.sum((x - b) ** 2), {}),
            workers=workers,
            mesh=mesh_of(workers),
        )
        shape = jax.ShapeDtypeStruct((workers, size), jnp.float32)
        return jd.audit.inspect(trainer.lower(shape.update(shape=(size,)), shape))

    kept = {workers: held(jd.sharded_all_reduce, workers) for workers in (1, 2, 8)}
    for workers, found in kept.items():
        assert abs(found.alias_bytes - 4 * size * (1 + 2 / workers)) < 100
    whole = held(jd.all_reduce, 8)
    assert abs(whole.alias_bytes - 4 * size * 3) < 100
    needs = [one.argument_bytes + one.temporary_bytes for one in (kept[8], whole)]
    assert needs[0] < 0.75 * needs[1]


REFUSED = {
    "a norm of all": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "a large norm of all": lambda: optax.chain(optax.clip_by_global_norm(1e5), optax.adam(0.1)),
    "a norm of each leaf": lambda: optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "trust ratios": lambda: optax.lamb(0.1),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.0, key=0), optax.sgd(0.1)),
    "a distance": lambda: optax.contrib.dog(1.0),
    "all or nothing": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "adafactor": lambda: optax.adafactor(0.1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_sees_more_than_a_number_is_refused_at_once(standard_promotion, name):
    with pytest.raises(ValueError, match=re.escape("or jd.all_reduce(rule)")):
        jd.sharded_all_reduce(REFUSED[name]())


REFUSED_ON_MATRICES = {
    "muon": lambda: optax.contrib.muon(0.1),
    "rows and columns": lambda: optax.sm3(0.1),
    "centered rows": lambda: optax.chain(optax.centralize(), optax.sgd(0.1)),
    "a mask by shape": lambda: optax.adamw(
        0.1, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    "memory of rows and columns": lambda: optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=4), optax.sgd(0.1)
    ),
}


@pytest.mark.parametrize("name", REFUSED_ON_MATRICES)
def test_a_rule_for_matrices_is_refused_before_anything_is_compiled(standard_promotion, name):
    def begin():
        rule = jd.sharded_all_reduce(REFUSED_ON_MATRICES[name]())
        return jd.execute(rule, loss, workers=4).init(start())

    with pytest.raises(jd.Refused, match=re.escape("jd.all_reduce(rule)")):
        begin()


def test_workers_that_may_be_away_are_refused_and_lost_messages_change_nothing():
    plain = jd.sharded_all_reduce(optax.sgd(0.1))
    lossy = jd.faulty(plain, jd.faults.link_loss(0.5, seed=0))
    ends = [end(one, workers=4, devices=4)[1] for one in (plain, lossy)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    away = jd.faulty(plain, jd.faults.workers_lost([1], start=2))
    with pytest.raises(ValueError, match="nobody|one worker only"):
        end(away, workers=4, devices=4)


@pytest.mark.slow
def test_the_page_of_bytes_is_what_the_benchmark_prints(standard_promotion, capsys):
    root = pathlib.Path(__file__).parent.parent
    runpy.run_path(str(root / "benchmarks" / "sharding.py"), run_name="__main__")
    page = (root / "docs" / "sharding.md").read_text()
    # The state is exact; the compiler's temporaries may be other ones in another version.
    printed = capsys.readouterr().out
    row = re.compile(r"^((?:\|[^|\n]*){5}\|)", re.M)
    assert row.findall(printed) == row.findall(page)
    assert len(row.findall(page)) == 10

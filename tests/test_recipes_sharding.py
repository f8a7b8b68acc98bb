"""Recipes for users whose worker is spread over several devices."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from recipe_checks import assert_every_gradient_counts, cross_entropy, digit_stream, run, scaled

import jaxdist as jd
from jaxdist.models import MLP


class Annotated(nn.Module):
    """Two layers that say themselves how they are split over the devices of a worker."""

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.lecun_normal()
        rows = nn.with_partitioning(normal, ("fsdp", None))
        columns = nn.with_partitioning(normal, (None, "fsdp"))
        x = nn.relu(nn.Dense(64, kernel_init=rows)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, kernel_init=columns)(x)


def annotated_loss(params, batch, key):
    logits = Annotated().apply({"params": params}, scaled(batch["image"]))
    return cross_entropy(logits, batch["label"]), {}


@cache
def boxed_params():
    return Annotated().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]


def moved_shapes(trainer, state, batch):
    """The shapes of what collective-permutes of the compiled step take and give."""
    text = trainer.compiled.lower(state, trainer.place(batch)).compile().as_text()
    # An operand may be printed by its name alone: then its shape is where it is defined.
    shape_of = dict(re.findall(r"(%?[\w.-]+) = (\(.*?\)|\w+\[[\d,]*\])", text))
    found = set()
    for result, operand in re.findall(r" = (.*?) collective-permute(?:-start)?\((.*?)\)", text):
        named = " ".join(shape_of.get(name, "") for name in re.findall(r"%?[\w.-]+", operand))
        found |= set(re.findall(r"\w+\[[\d,]*\]", f"{result} {operand} {named}"))
    return found


@pytest.mark.parametrize(("workers", "said_by"), [(4, "model"), (8, "user")])
def test_a_worker_spread_over_devices(workers, said_by):
    stream = digit_stream(workers)
    batches = [stream.batch(t) for t in range(6)]
    loss_fn, topology = annotated_loss, jd.topology.ring(workers)
    algorithm = jd.gossip(optax.sgd(0.1, momentum=0.9), topology)
    plain = nn.meta.unbox(boxed_params())
    one_device = jax.make_mesh((1,), ("worker",))
    whole = jd.execute(algorithm, loss_fn, workers=workers, mesh=one_device)
    _, expected = run(whole, plain, batches)

    mesh = jax.make_mesh((4, 2), ("worker", "fsdp"))  # 4 groups of devices, 2 devices in each
    if said_by == "model":
        params = boxed_params()  # boxed by nn.with_partitioning
        trainer = jd.execute(algorithm, loss_fn, workers=workers, mesh=mesh)
    else:
        params = nn.meta.unbox(boxed_params())
        sharding = {
            "Dense_0": {"kernel": P("fsdp", None), "bias": P()},
            "Dense_1": {"kernel": P(None, "fsdp"), "bias": P()},
        }
        trainer = jd.execute(algorithm, loss_fn, workers=workers, mesh=mesh, sharding=sharding)
    state, losses = run(trainer, params, batches)

    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert trainer.compiled.jitted._cache_size() == 1
    lanes = workers // 4
    for shape, spec, part in [
        ((64, 64), P("worker", "fsdp", None), (32, 64)),
        ((64, 10), P("worker", None, "fsdp"), (64, 5)),
    ]:
        placed = [x for x in jax.tree.leaves(state) if x.shape == (workers, *shape)]
        assert len(placed) == 2  # the parameter and its momentum
        for x in placed:
            same = jax.sharding.NamedSharding(x.sharding.mesh, spec)
            assert x.sharding.is_equivalent_to(same, x.ndim), x.sharding.spec
            assert x.addressable_shards[0].data.shape == (lanes, *part)
    moved = moved_shapes(trainer, state, batches[0])
    row = "" if lanes == 1 else "1,"  # with lanes a device sends one worker's row at a time
    assert {f"f32[{row}32,64]", f"f32[{row}64,5]"} <= moved
    assert not any(shape.endswith(("64,64]", "64,10]")) for shape in moved), moved
    weights = topology.matrix()
    assert_every_gradient_counts(trainer, loss_fn, params, batches[0], weights=weights)
    assert trainer.compiled.jitted._cache_size() == 1


def test_a_worker_axis_of_one():
    workers = 4
    stream = digit_stream(workers)
    batches = [stream.batch(t) for t in range(6)]
    model = MLP(features=(64, 10))
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))

    def loss_fn(params, batch, key):
        return cross_entropy(model.apply(params, scaled(batch["image"])), batch["label"]), {}

    algorithm = jd.gossip(optax.sgd(0.1, momentum=0.9), jd.topology.complete(workers))
    one_device = jax.make_mesh((1,), ("worker",))
    whole = jd.execute(algorithm, loss_fn, workers=workers, mesh=one_device)
    _, expected = run(whole, params, batches)

    mesh = jax.make_mesh((1, 8), ("worker", "fsdp"))  # all devices hold every worker together
    trainer = jd.execute(algorithm, loss_fn, workers=workers, mesh=mesh)
    state, losses = run(trainer, params, batches)

    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert trainer.compiled.jitted._cache_size() == 1
    placed = [x for x in jax.tree.leaves(state) if x.shape == (workers, 64, 64)]
    assert len(placed) == 2
    for x in placed:
        # JAX leaves an axis of size 1 out of the specs of its results.
        assert x.sharding.spec[1] == "fsdp"
        assert x.addressable_shards[0].data.shape == (workers, 8, 64)
    weights = np.full((workers, workers), 1 / workers)
    assert_every_gradient_counts(trainer, loss_fn, params, batches[0], weights=weights)


def test_shared_state_spread_over_devices():
    stream = digit_stream(4)
    batches = [stream.batch(t) for t in range(4)]
    algorithm = jd.all_reduce(optax.sgd(0.1, momentum=0.9))
    mesh = jax.make_mesh((4, 2), ("worker", "fsdp"))
    trainer = jd.execute(algorithm, annotated_loss, workers=4, mesh=mesh)
    state, losses = run(trainer, boxed_params(), batches)
    assert losses[-1] < losses[0]
    assert trainer.compiled.jitted._cache_size() == 1
    placed = [x for x in jax.tree.leaves(state) if x.shape == (64, 64)]
    assert [x.addressable_shards[0].data.shape for x in placed] == [(32, 64)] * 2
    assert_every_gradient_counts(trainer, annotated_loss, boxed_params(), batches[0])

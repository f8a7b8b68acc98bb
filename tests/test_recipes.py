"""Recipes for users: each is the loop as one would write it, and what it promises is asserted.

The code blocks of `docs/recipes.md` are taken from here; the last test compares them.
"""

import re
from functools import cache
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from recipe_checks import (
    WORKERS,
    assert_every_gradient_counts,
    cross_entropy,
    digit_stream,
    flat,
    rows,
    run,
    scaled,
)

import jaxdist as jd
from jaxdist.data import digits
from jaxdist.models import MLP, ConvNet


def test_pytree_of_arrays():
    target = np.linspace(-1.0, 1.0, WORKERS, dtype=np.float32)
    batch = {
        "x": np.random.default_rng(0).normal(size=(WORKERS, 16, 3)).astype(np.float32),
        "y": np.repeat(target[:, None], 16, axis=1),
    }

    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}

    def loss_fn(params, batch, key):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        return jnp.mean(error**2), {"bias": jnp.mean(error)}

    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1, momentum=0.9)), loss_fn, workers=8)
    state = trainer.init(params)
    losses = []
    for _ in range(20):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))

    assert losses[-1] < losses[0]
    assert metrics["bias"].shape == ()
    assert_every_gradient_counts(trainer, loss_fn, params, batch)


def test_bare_scalar():
    targets = np.arange(8.0, dtype=np.float32)  # one number for each worker

    def loss_fn(x, target, key):
        return (x - target) ** 2, {}

    trainer = jd.execute(jd.local_sgd(optax.sgd(0.1), period=4), loss_fn, workers=8)
    state = trainer.init(0.0)
    losses = []
    for _ in range(40):
        state, metrics = trainer.step(state, targets)
        losses.append(float(metrics["loss"]))
    answer = trainer.readout(state)  # the mean of the targets, shape ()

    assert losses[-1] < losses[0]
    np.testing.assert_allclose(answer, 3.5, rtol=1e-3)
    start = np.float32(0)
    assert_every_gradient_counts(trainer, loss_fn, start, targets, weights=np.eye(WORKERS))


@pytest.mark.parametrize("model", [MLP(features=(32, 10)), ConvNet(features=(8,))])
def test_flax_linen(model):
    stream = digit_stream()

    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))

    def loss_fn(params, batch, key):
        logits = model.apply(params, scaled(batch["image"]))
        accuracy = jnp.mean((logits.argmax(-1) == batch["label"]).astype(jnp.float32))
        return cross_entropy(logits, batch["label"]), {"accuracy": accuracy}

    ring = jd.topology.ring(8)
    trainer = jd.execute(jd.gossip(optax.sgd(0.1, momentum=0.9), ring), loss_fn, workers=8)
    state = trainer.init(params)
    losses = []
    for batch in islice(stream, 15):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))

    assert losses[-1] < losses[0]
    assert 0 <= metrics["accuracy"] <= 1
    first = stream.batch(0)
    assert_every_gradient_counts(trainer, loss_fn, params, first, weights=ring.matrix())


def test_flax_nnx():
    stream = digit_stream()

    class Scale(nnx.Variable):
        """A constant of the model: not trained."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.scale = Scale(jnp.float32(1 / 16))
            self.hidden = nnx.Linear(64, 32, rngs=rngs)
            self.dropout = nnx.Dropout(0.2)
            self.out = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, images, *, key):
            x = images.reshape(images.shape[0], -1).astype(jnp.float32) * self.scale.get_value()
            return self.out(self.dropout(nnx.relu(self.hidden(x)), rngs=nnx.Rngs(key)))

    # Trained: the State of nnx.Param. All other state is a constant that the loss closes over.
    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, batch, key):
        model = nnx.merge(graph, params, rest)
        return cross_entropy(model(batch["image"], key=key), batch["label"]), {}

    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1, momentum=0.9)), loss_fn, workers=8)
    state = trainer.init(params)
    losses = []
    for batch in islice(stream, 15):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    model = nnx.merge(graph, trainer.readout(state), rest)
    model.eval()  # no dropout

    assert losses[-1] < losses[0]
    assert len(jax.tree.leaves(rest)) == 1
    np.testing.assert_array_equal(model.scale.get_value(), np.float32(1 / 16))
    data = digits.load()
    predict = jax.jit(lambda images: model(images, key=jax.random.key(0)))
    logits = predict(data.test_images)
    assert np.mean(logits.argmax(-1) == data.test_labels) > 0.3
    assert_every_gradient_counts(trainer, loss_fn, params, stream.batch(0))


def test_batch_statistics():
    stream = digit_stream()

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            x = nn.Dense(32)(scaled(images).reshape(images.shape[0], -1))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            return nn.Dense(10)(nn.relu(x))

    model = Normed()
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), train=False)
    params, stats = variables["params"], variables["batch_stats"]

    def loss_fn(params, batch, key):
        logits, new = model.apply(
            {"params": params, "batch_stats": batch["stats"]},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, batch["label"]), {"stats": new["batch_stats"]}

    def with_stats(batch, stats):
        return batch | {"stats": jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), stats)}

    algorithm = jd.all_reduce(optax.sgd(0.1, momentum=0.9))
    trainer = jd.execute(algorithm, loss_fn, workers=8, batch_axes={"stats": None})
    state = trainer.init(params)
    losses = []
    for batch in islice(stream, 15):
        state, metrics = trainer.step(state, with_stats(batch, stats))
        stats = metrics["stats"]  # the mean over the workers
        losses.append(float(metrics["loss"]))

    def accuracy(params, batch):
        variables = {"params": params, "batch_stats": batch["stats"]}
        logits = model.apply(variables, batch["image"], train=False)
        return jnp.mean((logits.argmax(-1) == batch["label"]).astype(jnp.float32))

    data = digits.load()
    test = {"image": data.test_images, "label": data.test_labels, "stats": stats}
    score = trainer.evaluate(state, accuracy, test).readout

    assert losses[-1] < losses[0]
    assert score > 0.3
    start = variables["batch_stats"]
    first = with_stats(stream.batch(0), start)
    assert_every_gradient_counts(trainer, loss_fn, params, first)
    # The statistics in the metrics are the mean of those of each worker.
    _, metrics = trainer.step(trainer.init(params), first)
    statistics = jax.vmap(lambda batch: loss_fn(params, batch, None)[1]["stats"])
    own = rows(jax.jit(statistics)(first), WORKERS)
    np.testing.assert_allclose(flat(metrics["stats"]), own.mean(0), rtol=1e-5, atol=1e-6)
    assert np.abs(own[0] - own[-1]).max() > 1e-2


@cache
def mlp_problem():
    stream = digit_stream()
    model = MLP(features=(32, 10))
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))

    def loss_fn(params, batch, key):
        return cross_entropy(model.apply(params, batch["image"]), batch["label"]), {}

    batches = [stream.batch(t) for t in range(5)]
    for batch in batches:
        batch["image"] = (batch["image"] / 16).astype(np.float32)
    return params, loss_fn, batches


def test_accumulate():
    params, loss_fn, batches = mlp_problem()
    algorithm = jd.all_reduce(optax.sgd(0.1, momentum=0.9))

    # 16 examples of each worker in 4 parts, one after the other
    trainer = jd.execute(algorithm, loss_fn, workers=8, accumulate=4)
    state, losses = run(trainer, params, batches)

    assert losses[-1] < losses[0]
    assert_every_gradient_counts(trainer, loss_fn, params, batches[0])
    # The same as one worker that has the batches of all, whole.
    big = [jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch) for batch in batches]
    single, expected = run(jd.execute(algorithm, loss_fn, workers=1), params, big)
    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(flat(state), flat(single), rtol=1e-6, atol=1e-6)


def test_compute_in_bfloat16():
    params, loss_fn, batches = mlp_problem()
    algorithm = jd.all_reduce(optax.sgd(0.1, momentum=0.9))

    trainer = jd.execute(algorithm, loss_fn, workers=8, compute_dtype=jnp.bfloat16)
    state, losses = run(trainer, params, batches)

    def by_hand(params, batch, key):
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        batch = batch | {"image": batch["image"].astype(jnp.bfloat16)}
        return loss_fn(params, batch, key)

    assert losses[-1] < losses[0]
    assert {str(x.dtype) for x in jax.tree.leaves(state)} == {"float32", "int32"}
    other, expected = run(jd.execute(algorithm, by_hand, workers=8), params, batches)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(flat(state), flat(other))
    assert_every_gradient_counts(trainer, by_hand, params, batches[0])


def test_evaluate():
    params, loss_fn, batches = mlp_problem()
    model, data = MLP(features=(32, 10)), digits.load()

    def accuracy(params, batch):
        logits = model.apply(params, scaled(batch["image"]))
        return jnp.mean((logits.argmax(-1) == batch["label"]).astype(jnp.float32))

    trainer = jd.execute(jd.local_sgd(optax.sgd(0.1), period=10), loss_fn, workers=8)
    state, losses = run(trainer, params, batches)
    test = {"image": data.test_images, "label": data.test_labels}  # no worker axis
    score = trainer.evaluate(state, accuracy, test)

    assert losses[-1] < losses[0]
    assert score.readout.shape == ()
    assert score.workers.shape == (WORKERS,)
    points = jax.device_get(trainer.gradient_at(state))
    own = jax.jit(jax.vmap(accuracy, (0, None)))(points, test)
    mean = jax.tree.map(lambda x: x.mean(0), points)
    np.testing.assert_allclose(score.workers, own, atol=1e-6)
    np.testing.assert_allclose(score.readout, jax.jit(accuracy)(mean, test), atol=1 / 360 + 1e-6)
    assert len(set(np.asarray(score.workers).tolist())) > 1
    weights = np.eye(WORKERS)
    assert_every_gradient_counts(trainer, loss_fn, params, batches[0], weights=weights)


@pytest.mark.parametrize("name", ["all_reduce", "gossip"])
def test_donation(name):
    params, loss_fn, batches = mlp_problem()
    rule, ring = optax.sgd(0.1, momentum=0.9), jd.topology.ring(8)
    algorithm = jd.all_reduce(rule) if name == "all_reduce" else jd.gossip(rule, ring)

    trainer = jd.execute(algorithm, loss_fn, workers=8)
    state = trainer.init(params)
    old = state
    state, metrics = trainer.step(state, batches[0])
    assert all(x.is_deleted() for x in jax.tree.leaves(old))  # its memory is the new state's
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))  # yours stay yours

    lowered = trainer.compiled.lower(state, trainer.place(batches[0]))
    memory = lowered.compile().memory_analysis()
    # Both are of one device: its shard of every leaf.
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == held
    first = float(metrics["loss"])
    for batch in batches:
        state, metrics = trainer.step(state, batch)
    assert float(metrics["loss"]) < first
    weights = ring.matrix() if name == "gossip" else None
    assert_every_gradient_counts(trainer, loss_fn, params, batches[0], weights=weights)


def test_the_page_shows_this_code():
    here = Path(__file__)
    source = here.read_text() + here.with_name("test_recipes_sharding.py").read_text()
    source += here.with_name("recipe_checks.py").read_text()
    page = (here.parents[1] / "docs" / "recipes.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) > 10
    for shown in blocks:
        block = re.sub(r"^(from|import) .*\n", "", shown, flags=re.MULTILINE)
        # Blank space apart: the formatter lays out a page and an indented test differently.
        assert "".join(block.split()) in "".join(source.split()), block

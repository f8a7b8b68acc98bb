"""Leaves of a batch that hold no examples, and ids that do not fit: one trajectory, or refused by name."""

from itertools import islice

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd
from jaxdist import batch_axes, feed

W = 4


def weighted(params, batch, key):
    """Cross entropy with a weight for each class, as it stands in the batch."""
    logits = batch["x"] @ params
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return jnp.mean(losses * batch["weights"][batch["y"]]), {}


def examples():
    draw = np.random.default_rng(0)
    return {
        "x": draw.normal(size=(W, 8, 3)).astype(np.float32),
        "y": draw.integers(4, size=(W, 8)),
        "weights": draw.uniform(1.0, 5.0, size=(W, 4)).astype(np.float32),
    }


def trained(batch, **options):
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), weighted, workers=W, **options)
    state, metrics = trainer.step(trainer.init(jnp.ones((3, 4))), batch)
    return trainer.readout(state), metrics["loss"]


@pytest.mark.parametrize("parts", [2, 4])
def test_class_weights_are_whole_in_every_part(parts):
    expected = trained(examples())
    found = trained(examples(), accumulate=parts, batch_axes={"weights": None})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_leaves_of_which_it_is_not_said_what_they_hold_are_refused():
    with pytest.raises(jd.Refused, match=r"batch\['weights'\] \[4\].*batch_axes=\{'NAME': None\}"):
        trained(examples(), accumulate=2)
    with pytest.raises(jd.Refused, match=r"compute_dtype casts .*batch\['weights'\] \[4\]"):
        trained(examples(), compute_dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"weight": None}, r"batch_axes names \['weight'\], and the batch holds \['weights', 'x', 'y'\]"),
        (1, "batch_axes=1 where the batch is .*: expected 0"),
        ([0, None], r"batch_axes=\[0, None\] where the batch is"),
        ({"x": True}, "batch_axes=True where the batch is"),
    ],
)  # fmt: skip
def test_axes_that_the_batch_does_not_have_are_refused(axes, message):
    with pytest.raises(jd.Refused, match=message):
        trained(examples(), accumulate=2, batch_axes=axes)


def test_axes_are_a_prefix_of_any_pytree():
    batch = ((1.0, {"a": 2.0, "b": 3.0}), [4.0])
    assert batch_axes.examples(0, batch) == [True] * 4
    assert batch_axes.examples(((0, None), 0), batch) == [True, False, False, True]
    assert batch_axes.examples(((0, {"b": None}), None), batch) == [True, True, False, False]
    assert batch_axes.examples(None, batch) == [False] * 4


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.99, dtype=jnp.float32)(x)
        return nn.Dense(1, dtype=jnp.float32)(x)


def normed(params, batch, key):
    variables = {"params": params, "batch_stats": batch["stats"]}
    out, new = Normed().apply(variables, batch["x"], train=True, mutable=["batch_stats"])
    return jnp.mean(jnp.square(out)), {"stats": new["batch_stats"]}


def running_mean(*, features=5, steps=400, **options):
    """The running mean after some steps, as the recipe of batch statistics keeps it."""
    variables = Normed().init(jax.random.key(0), np.zeros((1, features), np.float32), train=False)
    trainer = jd.execute(jd.all_reduce(optax.sgd(1e-6)), normed, workers=2, **options)
    state, stats = trainer.init(variables["params"]), variables["batch_stats"]
    x = np.full((2, 8, features), 100.0, np.float32)
    for _ in range(steps):
        own = jax.tree.map(lambda s: jnp.broadcast_to(s, (2, *s.shape)), stats)
        state, metrics = trainer.step(state, {"x": x, "stats": own})
        stats = metrics["stats"]
    return float(stats["BatchNorm_0"]["mean"][0])


@pytest.mark.parametrize("options", [{"compute_dtype": jnp.bfloat16}, {"accumulate": 4}])
def test_running_statistics_are_neither_cast_nor_split(standard_promotion, options):
    expected = 100.0 * (1.0 - 0.99**400)  # 98.2; in bfloat16 it stands still at 64.5
    found = running_mean(batch_axes={"stats": None}, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("features", [5, 8])
def test_statistics_that_come_back_in_aux_have_to_be_named(standard_promotion, features):
    """As many features as examples look like examples."""
    for options in ({"compute_dtype": jnp.bfloat16}, {"accumulate": 4}):
        with pytest.raises(jd.Refused, match=r"batch_axes=\{'(stats|NAME)': None\}"):
            running_mean(features=features, steps=1, **options)


def chosen(params, batch, key):
    return jnp.mean(params[batch["id"]]), {}


@pytest.mark.parametrize(
    ("ids", "value"),
    [
        (np.int64([[2**33 + 5], [1]]), 2**33 + 5),
        (np.uint64([[2**33 + 5], [1]]), 2**33 + 5),
        (np.int64([[-(2**31) - 1], [1]]), -(2**31) - 1),
    ],
)
def test_ids_that_32_bits_do_not_hold_are_refused_at_every_step(ids, value):
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), chosen, workers=2)
    state, _ = trainer.step(trainer.init(jnp.zeros(8)), {"id": np.int64([[5], [1]])})
    with pytest.raises(
        jd.Refused, match=rf"batch\['id'\] holds {value}, which is cut to int32|uint32"
    ):
        trainer.step(state, {"id": ids})
    with pytest.raises(jd.Refused, match=rf"holds {value}"):
        trainer.evaluate(state, lambda p, batch: p[batch["id"]].sum(), {"id": ids})
    with pytest.raises(jd.Refused, match=rf"holds {value}"):
        trainer.steps(state, {"id": ids[None]})


def test_ids_of_64_bits_are_taken_where_jax_has_them(x64):
    trainer = jd.execute(
        jd.all_reduce(optax.sgd(0.1)),
        lambda p, b, k: (p * (b["id"] % 7).sum().astype(p.dtype), {}),
        workers=1,
    )
    _, metrics = trainer.step(trainer.init(jnp.ones(())), {"id": np.int64([[2**33 + 5]])})
    assert float(metrics["loss"]) == (2**33 + 5) % 7


def test_resident_examples_with_such_ids_are_refused():
    shards = [np.arange(4), np.arange(4, 8)]
    stream = jd.data.Stream({"id": np.arange(8) + 2**33}, shards, batch_size=2, seed=0)
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), chosen, workers=2)
    with (
        pytest.raises(jd.Refused, match="holds 8589934599"),
        feed.batches(stream, trainer, 0, resident=True) as made,
    ):
        list(islice(made, 1))

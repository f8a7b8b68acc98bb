"""One worker per device costs nothing: the program is the hand-written one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxdist as jd

W = 8
P = jax.sharding.PartitionSpec
RULE = optax.sgd(0.1, momentum=0.9)
OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)
tmap = jax.tree.map


def loss(params, batch, key):
    hidden = jnp.maximum(jnp.dot(batch["x"], params["a"]), 0.0)
    return jnp.mean((jnp.dot(hidden, params["b"]) - batch["y"]) ** 2), {}


def params():
    return {"a": jnp.full((64, 128), 0.1), "b": jnp.full((128, 4), 0.1)}


def batch():
    draw = np.random.default_rng(0)
    shapes = {"x": (W, 16, 64), "y": (W, 16, 4)}
    return {k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()), ("worker",))


def own(tree):
    return tmap(lambda x: lax.pcast(x, "worker", to="varying"), tree)


def gradient(x, batch):
    return jax.value_and_grad(lambda p: loss(p, batch, None)[0])(x)


def by_hand_all_reduce(state, batch):
    step, (x, inner, _), _ = state
    value, grads = gradient(own(x), tmap(lambda b: b[0], batch))
    updates, inner = RULE.update(lax.pmean(grads, "worker"), inner, x)
    state = step + 1, (optax.apply_updates(x, updates), inner, ()), ()
    return state, lax.pmean(value, "worker")


def by_hand_gossip(state, batch):
    step, _, local = state
    x, inner = tmap(lambda a: a[0], local)
    value, grads = gradient(x, tmap(lambda b: b[0], batch))
    updates, inner = RULE.update(grads, inner, x)
    x = optax.apply_updates(x, updates)
    up, down = ([(i, (i + d) % W) for i in range(W)] for d in (1, -1))
    x = tmap(lambda a: (a + lax.ppermute(a, "worker", up) + lax.ppermute(a, "worker", down)) / 3, x)
    return (step + 1, (), tmap(lambda a: a[None], (x, inner))), lax.pmean(value, "worker")


def by_hand_diloco(state, batch):
    step, shared, local = state
    x, inner, _ = tmap(lambda a: a[0], local)
    value, grads = gradient(x, tmap(lambda b: b[0], batch))
    updates, inner = RULE.update(grads, inner, x)
    x = optax.apply_updates(x, updates)

    def sync(rooms):
        (z, outer, _), x = rooms
        d = lax.pmean(tmap(jnp.subtract, z, x), "worker")
        updates, outer = OUTER.update(d, outer, z)
        z = optax.apply_updates(z, updates)
        return (z, outer, ()), own(z)

    shared, x = lax.cond((step + 1) % 4 == 0, sync, lambda rooms: rooms, (shared, x))
    state = step + 1, shared, tmap(lambda a: a[None], (x, inner, ()))
    return state, lax.pmean(value, "worker")


CASES = {
    "all_reduce": (jd.all_reduce(RULE), by_hand_all_reduce),
    "gossip": (jd.gossip(RULE, jd.topology.ring(W)), by_hand_gossip),
    "diloco": (jd.diloco(RULE, OUTER, period=4), by_hand_diloco),
}


@pytest.fixture(params=CASES)
def both(request):
    """The lowered step of jaxdist and the hand-written one, on the same state."""
    algorithm, by_hand = CASES[request.param]
    trainer = jd.execute(algorithm, loss, workers=W, bucket_bytes=0)
    state, data = trainer.init(params()), trainer.place(batch())
    rooms = P(), P(), P("worker")
    mapped = jax.shard_map(
        by_hand, mesh=mesh(), in_specs=(rooms, P("worker")), out_specs=(rooms, P())
    )
    hand = jax.jit(mapped, donate_argnums=0).lower(tuple(state), data)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    return trainer.compiled.lower(state, data), hand, held


def summary(lowered):
    found = jd.audit.collectives(lowered)
    return sorted((c.kind, c.dtype, c.shape, c.bytes, c.branch) for c in found)


def test_the_collectives_are_those_of_the_hand_written_step(both):
    ours, hand, _ = both
    assert summary(ours) == summary(hand)
    assert len(summary(ours)) > 1


def test_memory_and_donation_are_those_of_the_hand_written_step(both):
    ours, hand, held = both
    mine, theirs = ours.compile().memory_analysis(), hand.compile().memory_analysis()
    assert mine.alias_size_in_bytes == theirs.alias_size_in_bytes == held
    assert mine.peak_memory_in_bytes <= theirs.peak_memory_in_bytes


def rounds_program(leaves, rounds, **options):
    topology = jd.topology.random_matching(W, rounds, seed=0)
    tree = [jnp.zeros(7) for _ in range(leaves)]

    def total(params, batch, key):
        return sum(jnp.sum((p - batch) ** 2) for p in params), {}

    trainer = jd.execute(jd.gossip(optax.sgd(0.1), topology), total, workers=W, **options)
    lowered = trainer.compiled.lower(trainer.init(tree), np.ones((W, 7), np.float32))
    sent = [c for c in jd.audit.collectives(lowered) if c.kind == "collective_permute"]
    return len(sent), lowered.as_text().count("\n")


@pytest.mark.slow
def test_the_program_does_not_grow_with_leaves_times_rounds():
    few, many = rounds_program(2, 32), rounds_program(30, 32)
    # Rounds that are alike, as drawn ones may be, are one branch of the program.
    rounds = jd.topology.random_matching(W, 32, seed=0).rounds
    different = len({one.matrix.tobytes() for one in rounds})
    assert few[0] == many[0] == different
    # Lines grow with the leaves (their own gradients) and with the rounds, not with the product.
    assert many[1] - few[1] < 28 * 60
    assert rounds_program(30, 32, bucket_bytes=0)[0] == 30 * different  # the control

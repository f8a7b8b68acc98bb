"""Steps compiled for TPUs and GPUs that are not here: what they send, and what hides it.

The extra `aot` brings the compilers: `pip install '.[test,aot]'`, then `python -m pytest -m tpu`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

import jaxdist as jd

pytestmark = [pytest.mark.slow, pytest.mark.tpu]
TPUS = ["v4:2x2x1", "v5e:2x4", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1"]
WIDTH, LAYERS = 1024, 4
PARAMETERS = LAYERS * WIDTH * WIDTH * 4


def mesh_of(target, axes=("worker",), shape=None):
    try:
        devices = jd.targets.devices(target)
    except ValueError as error:
        pytest.skip(str(error))
    shape = shape or (len(devices),)
    return Mesh(np.array(devices).reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))


def loss(params, batch, key):
    for w in params:
        batch = jax.nn.relu(batch @ w)
    return jnp.mean(batch**2), {}


def lower(algorithm, mesh):
    """One step, of shapes alone; `algorithm` takes the number of workers."""
    workers = mesh.shape["worker"]
    trainer = jd.execute(algorithm(workers), loss, workers=workers, mesh=mesh)
    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * LAYERS
    batch = jax.ShapeDtypeStruct((workers, 256, WIDTH), jnp.float32)
    return trainer.lower(params, batch)


def d_psgd(workers):
    return jd.gossip(optax.sgd(0.1), jd.topology.ring(workers), order="combine_while_adapt")


def permutes(inspection):
    """Those of the algorithm, not those XLA makes of a sharded matrix product."""
    return [
        one
        for one in inspection.transfers
        if one.kind == "collective_permute" and one.name.endswith("ppermute")
    ]


@pytest.mark.parametrize("target", [*TPUS, "h100:8"])
def test_gossip_sends_the_parameters_to_its_neighbors_and_hides_it(target):
    mesh = mesh_of(target)
    lowered = lower(d_psgd, mesh)
    found = jd.audit.inspect(lowered)
    sent, workers = permutes(found), mesh.size
    assert sum(one.bytes for one in sent) == 2 * PARAMETERS  # to both neighbors
    ring = {
        tuple(sorted((i, (i + hop) % workers) for i in range(workers))) for hop in (1, workers - 1)
    }
    assert {tuple(sorted(one.partners)) for one in sent} == ring
    assert all(one.asynchronous for one in sent)
    # The first to be started may be waited for at once; no more than one is.
    assert sum(one.hidden_operations > 0 for one in sent) >= len(sent) - 1
    assert found.alias_bytes >= PARAMETERS
    if target != "h100:8":
        # Matrix products of the backward pass run while the parameters travel.
        assert sum(one.hidden_cycles for one in sent) > 100_000
        options = {"xla_enable_async_collective_permute": False}
        bad = permutes(jd.audit.inspect(lowered.compile(compiler_options=options)))
        assert sum(one.bytes for one in bad) == 2 * PARAMETERS
        assert not any(one.asynchronous or one.hidden_cycles for one in bad)


@pytest.mark.parametrize("target", [*TPUS, "h100:8"])
def test_an_all_reduce_is_the_parameters_and_the_loss(target):
    found = jd.audit.inspect(lower(lambda workers: jd.all_reduce(optax.sgd(0.1)), mesh_of(target)))
    assert {one.kind for one in found.transfers} == {"all_reduce"}
    assert sum(one.bytes for one in found.transfers) == PARAMETERS + 4
    # Four products forward, four for the weights, three for what goes further back.
    assert found.flops == 11 * 2 * 256 * WIDTH * WIDTH


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        (d_psgd, "collective_permute"),
        (lambda workers: jd.diloco(optax.sgd(0.1), optax.sgd(0.7), period=4), "all_reduce"),
    ],
    ids=["gossip", "diloco"],
)
def test_workers_spread_over_a_slice_talk_to_other_slices_by_their_shards(algorithm, kind):
    mesh = mesh_of("v5p:2x2x1*4", ("worker", "fsdp"), (4, 4))
    found = jd.audit.inspect(lower(algorithm, mesh))
    across = [one for one in found.transfers if one.across and one.bytes > 1000]
    assert {one.kind for one in across} == {kind}
    copies = 2 if kind == "collective_permute" else 1
    assert sum(one.bytes for one in across) == copies * PARAMETERS // 4
    assert all(one.asynchronous for one in across)
    if kind == "all_reduce":
        assert all(one.branch for one in across)  # once in four steps


# A TPU waits for an all-reduce where it stands, unless it is told otherwise.
OVERLAP_ALL_REDUCE = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_enable_async_all_reduce": True,
    "xla_jf_crs_combiner_threshold_in_bytes": 1,  # combined gradients are there only when all are
}


def overlap_sgp(topology, delay):
    return lambda workers: jd.push_sum(optax.sgd(0.1), topology(workers), delay=delay)


@pytest.mark.parametrize("target", ["v5e:2x4", "v5p:2x2x2"])
def test_overlap_sgp_hides_every_exchange_behind_the_gradient(target):
    mesh = mesh_of(target)

    def arrays(compiled):
        return [one for one in permutes(jd.audit.inspect(compiled)) if one.bytes > 4]

    late = lower(overlap_sgp(jd.topology.exponential, 1), mesh)
    hidden = arrays(late)
    assert sum(one.bytes for one in hidden) == 3 * PARAMETERS  # hops 1, 2 and 4
    assert all(one.asynchronous and one.hidden_operations > 1 for one in hidden)
    # At once, the first layer's exchange begins when the gradient is done: only the update is left.
    least = min(one.hidden_cycles for one in hidden)
    at_once = arrays(lower(overlap_sgp(jd.topology.exponential, 0), mesh))
    assert sum(one.bytes for one in at_once) == 3 * PARAMETERS
    assert least > 1.5 * min(one.hidden_cycles for one in at_once)
    bad = arrays(late.compile(compiler_options={"xla_enable_async_collective_permute": False}))
    assert sum(one.bytes for one in bad) == 3 * PARAMETERS
    assert not any(one.asynchronous or one.hidden_cycles for one in bad)


def test_rounds_that_vary_are_branches_which_hide_behind_no_gradient():
    mesh = mesh_of("v5e:2x4")
    found = jd.audit.inspect(lower(overlap_sgp(jd.topology.one_peer_exponential, 1), mesh))
    sent = permutes(found)
    assert all(one.branch for one in sent)
    for case in ("case 0", "case 1", "case 2"):
        assert sum(one.bytes for one in sent if one.branch == (case,)) == PARAMETERS + 4
    # Beside one array of a branch there is the weighting of the others, and no product.
    assert max(one.hidden_operations for one in sent) < LAYERS


@pytest.mark.parametrize("target", ["v5e:2x4", "v5p:2x2x2"])
def test_an_all_reduce_is_hidden_only_where_the_compiler_is_told_to(target):
    lowered = lower(lambda workers: jd.all_reduce(optax.sgd(0.1)), mesh_of(target))
    waited = jd.audit.inspect(lowered)
    assert not any(one.asynchronous for one in waited.transfers)
    told = jd.audit.inspect(lowered.compile(compiler_options=OVERLAP_ALL_REDUCE)).transfers
    assert sum(one.bytes for one in told) == PARAMETERS + 4
    beside = [one for one in told if one.asynchronous]
    assert len(beside) >= LAYERS - 2
    assert all(one.hidden_operations and one.hidden_cycles > 5_000 for one in beside)


def test_streaming_diloco_waits_for_its_fragment_whatever_the_compiler_is_told():
    def late(workers):
        return jd.streaming_diloco(
            optax.sgd(0.1), optax.sgd(0.7), period=8, fragments=4, delay=1, blend=0.5
        )

    lowered = lower(late, mesh_of("v5p:2x2x2"))
    for options in ({}, OVERLAP_ALL_REDUCE):
        found = jd.audit.inspect(lowered.compile(compiler_options=options))
        sent = [one for one in found.transfers if one.bytes > 4]
        # One fragment in each of four branches, and nothing of a step is beside a branch.
        assert [one.branch for one in sent] == [(f"case {p}",) for p in range(1, 5)]
        assert sum(one.bytes for one in sent) == PARAMETERS
        assert not any(one.asynchronous or one.hidden_operations for one in sent)
    # From slice to slice it is asynchronous, with nothing to do meanwhile all the same.
    mesh = mesh_of("v5p:2x2x1*2")
    across = [one for one in jd.audit.inspect(lower(late, mesh)).transfers if one.across]
    across = [one for one in across if one.bytes > 1000]  # the loss goes there too
    assert len(across) == 4
    assert all(one.asynchronous and one.branch and not one.hidden_operations for one in across)


def test_a_model_that_does_not_fit_says_so_with_the_numbers():
    mesh = mesh_of("v5e:2x2")
    trainer = jd.execute(d_psgd(4), loss, workers=4, mesh=mesh)
    params = [jax.ShapeDtypeStruct((32768, 32768), jnp.float32)] * 6
    lowered = trainer.lower(params, jax.ShapeDtypeStruct((4, 8, 32768), jnp.float32))
    with pytest.raises(ValueError, match=r"does not fit .* \d+\.\d+G.* hbm|HBM"):
        jd.audit.inspect(lowered)

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


def lower(algorithm, mesh, **options):
    """One step, of shapes alone; `algorithm` takes the number of workers."""
    workers = mesh.shape["worker"]
    trainer = jd.execute(algorithm(workers), loss, workers=workers, mesh=mesh, **options)
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


def streaming(workers):
    return jd.streaming_diloco(
        optax.sgd(0.1), optax.sgd(0.7), period=8, fragments=4, delay=1, blend=0.5
    )


def diloco(workers):
    return jd.diloco(optax.sgd(0.1), optax.sgd(0.7), period=4)


SPREAD = {
    "gossip": (d_psgd, "collective_permute", {}, 2),
    "diloco": (diloco, "all_reduce", {}, 1),
    "streaming diloco": (streaming, "all_reduce", {"overlap": True}, 1),
}


@pytest.mark.parametrize("name", SPREAD)
def test_workers_spread_over_a_slice_talk_to_other_slices_by_their_shards(name):
    algorithm, kind, options, copies = SPREAD[name]
    mesh = mesh_of("v5p:2x2x1*4", ("worker", "fsdp"), (4, 4))
    found = jd.audit.inspect(lower(algorithm, mesh, **options))
    across = [one for one in found.transfers if one.across and one.bytes > 1000]
    assert {one.kind for one in across} == {kind}
    assert sum(one.bytes for one in across) == copies * PARAMETERS // 4
    assert all(one.asynchronous for one in across)
    if name == "diloco":
        # Once in four steps, when the gradient is applied: nothing is left to be computed beside.
        assert all(one.branch and not one.hidden_operations for one in across)
    else:
        # Matrix products of the gradient run beside, and so do the gathers of their shards.
        assert all(one.hidden_cycles > 10_000 for one in across)


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


def varying_d_psgd(workers):
    topology = jd.topology.one_peer_exponential(workers)
    return jd.gossip(optax.sgd(0.1), topology, order="combine_while_adapt")


VARYING = {
    "overlap sgp": overlap_sgp(jd.topology.one_peer_exponential, 1),
    "d-psgd": varying_d_psgd,
}


@pytest.mark.parametrize("name", VARYING)
def test_rounds_that_vary_hide_behind_the_gradient_of_their_own_branch(name):
    mesh = mesh_of("v5e:2x4")
    cases = [("case 0",), ("case 1",), ("case 2",)]
    found = {
        overlap: [
            one
            for one in permutes(jd.audit.inspect(lower(VARYING[name], mesh, overlap=overlap)))
            if one.bytes > 4
        ]
        for overlap in (False, True)
    }
    for sent in found.values():
        for case in cases:
            assert sum(one.bytes for one in sent if one.branch == case) == PARAMETERS
        assert {one.branch for one in sent} == set(cases)
        assert all(one.asynchronous for one in sent)
    # Without it a branch holds the exchange alone: beside one array the others are weighted.
    assert max(one.hidden_operations for one in found[False]) < LAYERS
    for case in cases:
        hidden = [one.hidden_cycles for one in found[True] if one.branch == case]
        assert sum(hidden) > 100_000


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


def fragments(compiled):
    """The messages of the fragments, not the loss that is reported."""
    return [one for one in jd.audit.inspect(compiled).transfers if one.bytes > 1000]


@pytest.mark.parametrize("target", ["v5e:2x4", "v5p:2x2x2"])
def test_streaming_diloco_hides_its_fragment_in_a_branch_with_the_gradient(target):
    mesh = mesh_of(target)
    hidden = fragments(
        lower(streaming, mesh, overlap=True).compile(compiler_options=OVERLAP_ALL_REDUCE)
    )
    # One fragment in each of four branches; in the fifth nothing is sent.
    assert [one.branch for one in hidden] == [(f"case {p}",) for p in range(1, 5)]
    assert sum(one.bytes for one in hidden) == PARAMETERS
    assert all(one.asynchronous and one.hidden_cycles > 10_000 for one in hidden)
    # Without the whole step in the branch, and without the options, it is waited for.
    bad = [
        lower(streaming, mesh).compile(compiler_options=OVERLAP_ALL_REDUCE),
        lower(streaming, mesh, overlap=True).compile(),
    ]
    for waited in map(fragments, bad):
        assert [one.branch for one in waited] == [one.branch for one in hidden]
        assert not any(one.asynchronous or one.hidden_operations for one in waited)


def test_streaming_diloco_hides_its_fragment_on_the_way_to_another_slice():
    mesh = mesh_of("v5p:2x2x1*2")
    for overlap in (True, False):
        sent = fragments(lower(streaming, mesh, overlap=overlap))
        across = [one for one in sent if one.across]
        assert [one.branch for one in across] == [(f"case {p}",) for p in range(1, 5)]
        assert all(one.asynchronous for one in across)
        if overlap:
            assert all(one.hidden_cycles > 50_000 for one in across)
        else:
            assert not any(one.hidden_operations for one in across)


def test_a_model_that_does_not_fit_says_so_with_the_numbers():
    mesh = mesh_of("v5e:2x2")
    trainer = jd.execute(d_psgd(4), loss, workers=4, mesh=mesh)
    params = [jax.ShapeDtypeStruct((32768, 32768), jnp.float32)] * 6
    lowered = trainer.lower(params, jax.ShapeDtypeStruct((4, 8, 32768), jnp.float32))
    with pytest.raises(ValueError, match=r"does not fit .* \d+\.\d+G.* hbm|HBM"):
        jd.audit.inspect(lowered)

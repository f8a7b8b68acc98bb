"""What is read from compiled programs is what stands in them: bytes, partners, loops, operations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from jax import lax

import jaxdist as jd
from jaxdist import cli
from jaxdist.audit import hlo, traffic


def mlp_loss(params, batch, key):
    for w in params:
        batch = jax.nn.relu(batch @ w)
    return jnp.mean(batch**2), {}


def lowered(algorithm, *, layers=4, width=32, workers=8):
    trainer = jd.execute(algorithm, mlp_loss, workers=workers)
    params = [jnp.zeros((width, width))] * layers
    return trainer.lower(params, np.zeros((workers, 16, width), np.float32))


def test_a_step_lowered_from_shapes_is_the_step_that_runs():
    trainer = jd.execute(jd.gossip(optax.sgd(0.1), jd.topology.ring(8)), mlp_loss, workers=8)
    params, batch = [jnp.ones((4, 4))], np.ones((8, 2, 4), np.float32)
    shapes = jax.eval_shape(lambda: params)
    real = trainer.compiled.lower(trainer.init(params), trainer.place(batch))
    assert trainer.lower(shapes, batch).as_text() == real.as_text()


@pytest.mark.parametrize("hops", [1, 3])
def test_permutes_of_gossip_are_the_parameters_and_their_pairs_the_topology(hops):
    W = np.eye(8) * 0.5 + np.roll(np.eye(8), hops, axis=0) * 0.5
    program = lowered(jd.gossip(optax.sgd(0.1), jd.topology.from_matrix(W)))
    found = jd.audit.inspect(program)
    sent = [one for one in found.transfers if one.kind == "collective_permute"]
    assert sum(one.bytes for one in sent) == 4 * 32 * 32 * 4
    for one in sent:
        assert sorted(one.partners) == [(i, (i + hops) % 8) for i in range(8)]
    assert sum(one.bytes for one in found.transfers if one.kind == "all_reduce") == 4  # the loss


def test_an_all_reduce_is_the_parameters_and_the_loss():
    found = jd.audit.inspect(lowered(jd.all_reduce(optax.sgd(0.1))))
    assert {one.kind for one in found.transfers} == {"all_reduce"}
    assert sum(one.bytes for one in found.transfers) == 4 * 32 * 32 * 4 + 4
    assert all(one.partners == ((8, 1),) for one in found.transfers)
    assert found.sent() == pytest.approx(2 * 7 / 8 * (4 * 32 * 32 * 4 + 4), rel=0.01)


def test_what_is_sent_every_so_often_sits_in_a_branch():
    found = jd.audit.inspect(lowered(jd.local_sgd(optax.sgd(0.1), period=3)))
    assert found.sent() < 10  # the loss
    branches = {one.branch for one in found.transfers if one.branch}
    assert len(branches) == 1
    assert found.sent(branches.pop()) > 2 * 7 / 8 * 4 * 32 * 32 * 4


def test_declared_bytes_are_those_of_the_compiled_program():
    for algorithm in (
        jd.all_reduce(optax.sgd(0.1)),
        jd.gossip(optax.sgd(0.1), jd.topology.exponential(8)),
    ):
        found = jd.audit.inspect(lowered(algorithm))
        params = [jnp.zeros((32, 32))] * 4
        assert sum(one.bytes * one.times for one in found.transfers) - 4 == algorithm.sends(
            params, 0
        )


def test_operations_of_products_are_counted():
    a, b = jnp.ones((8, 16)), jnp.ones((16, 4))
    assert jd.audit.inspect(jax.jit(lambda a, b: a @ b).lower(a, b)).flops == 2 * 8 * 16 * 4
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    dims = lax.conv_dimension_numbers(images.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    program = jax.jit(
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=dims)
    ).lower(images, kernel)
    assert jd.audit.inspect(program).flops == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


def test_a_loop_counts_as_often_as_it_runs():
    def layers(x, ws):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    program = jax.jit(layers).lower(jnp.ones((8, 16)), jnp.ones((7, 16, 16)))
    found = jd.audit.inspect(program)
    assert found.flops == 7 * 2 * 8 * 16 * 16
    once = program.compile().cost_analysis()["flops"]
    assert once < 2 * 2 * 8 * 16 * 16  # XLA's own figure has the body once


def test_a_scan_of_steps_multiplies_its_messages():
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), mlp_loss, workers=8)
    state = trainer.init([jnp.zeros((8, 8))])

    def many(state, batches):
        return lax.scan(trainer.compiled, state, batches)

    program = jax.jit(many).lower(state, jnp.zeros((5, 8, 4, 8)))
    assert sum(one.bytes * one.times for one in jd.audit.inspect(program).transfers) == 5 * (
        256 + 4
    )


def test_donated_bytes_are_the_state():
    found = jd.audit.inspect(lowered(jd.gossip(optax.sgd(0.1, momentum=0.9), jd.topology.ring(8))))
    assert found.alias_bytes == 2 * 4 * 32 * 32 * 4 + 4
    assert found.argument_bytes == found.alias_bytes + 16 * 32 * 4
    assert found.compile_seconds > 0


FORMS = """HloModule forms

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%wrapped (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %gather = bf16[32,4]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

%body (s: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[16]{0:T(128)} get-tuple-element(%s), index=1
  %r = f32[16]{0:T(128)} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %o = (s32[], f32[16]{0}) tuple(%i, %r)
}

%condition (s: (s32[], f32[16])) -> pred[] {
  %c = (s32[], f32[16]{0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(6)
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (x: f32[16], y: bf16[8,4], t: (s32[], f32[16])) -> f32[16] {
  %x0 = f32[16]{0} parameter(0)
  %y0 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(1)
  %t0 = (s32[], /*index=1*/f32[16]{0}) parameter(2)
  %cp = (f32[16]{0}, f32[16]{0}) collective-permute-start(%x0), source_target_pairs={{0,1},{1,0}}
  %f = f32[16]{0} fusion(%x0), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"70"}
  %as = ((bf16[8,4]), bf16[32,4]) async-start(%y0), calls=%wrapped
  %g = f32[16]{0} fusion(%x0), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"30"}
  %ad = bf16[32,4]{1,0} async-done(%as)
  %done = f32[16]{0} collective-permute-done(%cp)
  %loop = (s32[], f32[16]{0}) while(%t0), condition=%condition, body=%body
  %m = f32[16]{0} all-reduce(%x0), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum
  %send = (f32[16], token[]) send(%x0, %tok), frontend_attributes={_xla_megascale_transfer_type="ONE_TO_ONE"}
  ROOT %out = f32[16]{0} add(%f, %done)
}
"""


def test_every_form_that_xla_prints_is_read():
    found = traffic.transfers(hlo.parse(FORMS))
    permute, gather, looped, meshed, across = found
    assert (permute.kind, permute.bytes, permute.partners) == (
        "collective_permute", 64, ((0, 1), (1, 0)),
    )  # fmt: skip
    # Between start and done: two fusions, and nothing of what async-start wraps.
    assert (permute.asynchronous, permute.hidden_operations, permute.hidden_cycles) == (
        True,
        2,
        100,
    )
    assert (gather.kind, gather.dtype, gather.bytes) == ("all_gather", "bf16", 64)
    assert (gather.partners, gather.sent) == (((4, 2),), 3 * 64)
    assert (gather.asynchronous, gather.hidden_cycles) == (True, 30)
    assert (looped.kind, looped.times, looped.partners) == ("all_reduce", 6, ((2, 2),))
    assert not looped.asynchronous
    assert meshed.partners == ((4, 2),)
    assert (across.kind, across.bytes, across.across) == ("collective_permute", 64, True)
    assert not any(one.across for one in found[:-1])


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


def test_the_shell_shows_and_writes_what_a_step_sends(tmp_path, capsys):
    config, file = runs.small(tmp_path), tmp_path / "found.json"
    assert cli.main(["inspect", config, "--target", "cpu:4", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "4 workers on 4 x cpu" in out
    assert "collective_permute  f32   16     16    hop 1" in out
    written = json.loads(file.read_text())
    assert written["alias_bytes"] == 2 * 16 + 4
    assert cli.main(["inspect", config, "--target", "v9:1"]) == 2
    assert "there is no target 'v9:1'" in capsys.readouterr().err


CHAIN = """HloModule m, is_scheduled=true

%first (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %r.1 = f32[256]{0} all-reduce(%p), replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
}

%async_collective_fusion.1 (q: f32[256]) -> f32[256] {
  %q = f32[256]{0} parameter(0)
  ROOT %r.2 = f32[256]{0} all-reduce(%q), replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
}

%last (s: f32[256]) -> f32[256] {
  %s = f32[256]{0} parameter(0)
  ROOT %r.3 = f32[256]{0} all-reduce(%s), replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %async-collective-start = f32[256]{0} fusion(%x), kind=kCustom, calls=%first
  %fusion.1 = f32[256]{0} fusion(%async-collective-start), calls=%async_collective_fusion.1, \
backend_config={"estimated_cycles":"700"}
  ROOT %async-collective-done = f32[256]{0} fusion(%fusion.1), kind=kCustom, calls=%last
}
"""


def test_a_collective_that_a_tpu_spreads_over_fusions_is_one_and_hides_their_compute():
    (one,) = traffic.transfers(hlo.parse(CHAIN))
    assert (one.kind, one.bytes, one.asynchronous) == ("all_reduce", 1024, True)
    assert (one.hidden_operations, one.hidden_cycles) == (1, 700)

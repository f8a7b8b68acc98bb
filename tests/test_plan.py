"""Predicted step times: the formulas, what hides, what is refused, and the page of errors."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd
from jaxdist import cli, plan

ROOT = pathlib.Path(__file__).parent.parent
PARAMS = jax.ShapeDtypeStruct((25_000_000,), jnp.float32)


def predicted(algorithm, workers, *, target="v5e:16x16", flops=1e12, **options):
    return plan.predict(algorithm, PARAMS, plan.lay_out(target, workers), flops=flops, **options)


def shift(workers, by):
    return [((i - by) % workers,) for i in range(workers)]


def test_an_all_reduce_in_a_slice_runs_at_the_bandwidth_that_is_specified_for_a_pod():
    seconds = plan.all_reduce_seconds(plan.lay_out("v5e:16x16", 256), 1e10)
    # 51.2 TB/s a pod: every chip sends and hears 2 (W - 1) / W of the bytes at 200 GB/s.
    assert seconds == pytest.approx(2 * 255 / 256 * 1e10 / (51.2e12 / 256), rel=1e-3)


def test_a_message_shares_the_links_with_those_that_pass():
    layout = plan.lay_out("v5e:16x16", 256)
    one, four, half, up = (
        plan.neighbors_seconds(layout, shift(256, by), 1e9) for by in (1, 4, 8, 32)
    )
    assert one == pytest.approx(1e9 / 5e10, rel=0.01)
    assert four == pytest.approx(4 * one, rel=0.05)
    assert half == pytest.approx(8 * one, rel=0.1)
    assert up == pytest.approx(2 * one, rel=0.05)  # two rows on
    assert plan.neighbors_seconds(layout, shift(256, 255), 1e9) == pytest.approx(
        one
    )  # the way back


def test_what_leaves_a_slice_takes_the_other_network():
    inside = plan.neighbors_seconds(plan.lay_out("v5e:16x16", 256), shift(256, 1), 1e9)
    across = plan.neighbors_seconds(plan.lay_out("v5e:16x16", 512), shift(512, 1), 1e9)
    assert across == pytest.approx(5e-5 + 1e9 / 3.125e9)
    assert across > 10 * inside
    both = [predicted(jd.all_reduce(optax.sgd(0.1)), W) for W in (256, 512)]
    slower = both[1].exchange_seconds - both[0].exchange_seconds
    # Each of 256 chips carries its part of the ring between two slices.
    assert slower == pytest.approx(2 * (5e-5 + 1e8 / 256 / 2 / 3.125e9), rel=1e-3)


def test_a_method_is_paid_for_what_it_sends_and_how_often():
    often, seldom = (predicted(jd.local_sgd(optax.sgd(0.1), period=p), 64) for p in (1, 10))
    assert often.bytes == 10 * seldom.bytes == 1e8
    assert often.exchange_seconds == pytest.approx(10 * seldom.exchange_seconds)
    assert often.efficiency < seldom.efficiency < 1
    assert predicted(jd.all_reduce(optax.sgd(0.1)), 64).step_seconds == often.step_seconds
    late = predicted(jd.local_sgd(optax.sgd(0.1), period=10, start=1000), 64)
    assert late.step_seconds == seldom.step_seconds  # once it has started
    assert predicted(jd.all_reduce(optax.sgd(0.1)), 1).efficiency == 1


def test_an_exchange_is_hidden_where_the_program_can_hide_it():
    rule, ring = optax.sgd(0.1), jd.topology.ring(64)
    varying = jd.topology.one_peer_exponential(64)
    after, beside = (
        predicted(jd.gossip(rule, ring, order=order), 64)
        for order in ("adapt_then_combine", "combine_while_adapt")
    )
    assert after.step_seconds == after.compute_seconds + after.exchange_seconds
    assert beside.step_seconds == max(beside.compute_seconds, beside.exchange_seconds)
    turns = jd.gossip(rule, varying, order="combine_while_adapt")
    waited, hidden = (predicted(turns, 64, overlap=overlap) for overlap in (False, True))
    assert waited.step_seconds == pytest.approx(waited.compute_seconds + waited.exchange_seconds)
    assert hidden.step_seconds == pytest.approx(waited.compute_seconds)
    fragments = {"p": PARAMS, "q": PARAMS}
    late = jd.streaming_diloco(rule, rule, period=4, fragments=2, delay=1)
    layout = plan.lay_out("v5e:16x16", 64)
    waited, hidden = (
        plan.predict(late, fragments, layout, flops=1e12, overlap=overlap)
        for overlap in (False, True)
    )
    assert waited.bytes == 1e8 / 2  # a fragment of 100 MB every other step
    assert waited.step_seconds == pytest.approx(waited.compute_seconds + waited.exchange_seconds)
    assert hidden.step_seconds == pytest.approx(waited.compute_seconds)


def test_many_chips_of_a_worker_share_its_work_and_its_bytes():
    algorithm = jd.all_reduce(optax.sgd(0.1))
    whole = plan.predict(algorithm, PARAMS, plan.lay_out("v5e:16x16", 4, chips=64), flops=1e12)
    alone = plan.predict(algorithm, PARAMS, plan.lay_out("v5e:16x16", 4), flops=1e12)
    assert whole.compute_seconds == pytest.approx(alone.compute_seconds / 64)
    assert whole.exchange_seconds < alone.exchange_seconds / 30


def test_operations_are_those_of_the_products():
    def loss(params, batch, key):
        for w in params:
            batch = jax.nn.relu(batch @ w)
        return jnp.mean(batch**2), {}

    found = plan.gradient_flops(loss, [jnp.zeros((64, 64))] * 3, jnp.zeros((32, 64)))
    assert found == (3 + 3 + 2) * 2 * 32 * 64 * 64  # the data's own gradient is not taken


@pytest.mark.parametrize(
    ("target", "workers", "chips", "says"),
    [
        ("v9:4x4", 4, 1, "v5e:16x16"),
        ("v5e", 4, 1, "v5e:16x16"),
        ("v5e:16x16", 300, 1, "write 512"),
        ("v5e:16x16", 64, 3, "chips-per-worker=3"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(target, workers, chips, says):
    with pytest.raises(ValueError, match=says):
        plan.lay_out(target, workers, chips=chips)


def test_a_method_with_a_clock_is_refused():
    with pytest.raises(ValueError, match="simulated, not planned"):
        predicted(jd.downpour(optax.sgd(0.1), clock=jd.clock.constant(4)), 4)


def test_the_command_says_that_it_predicts(tmp_path, capsys):
    file, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    config = str(ROOT / "configs" / "digits_gossip.py")
    given = ["plan", config, "--target", "v5p:4x4x4", "--workers", "16,2048", "--batch-size", "16"]
    assert cli.main([*given, "--json", str(file), "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "a PREDICTION by a model, not a measurement" in said
    assert "the config itself has no 2048 workers" in said
    rows = json.loads(file.read_text())["rows"]
    assert {row["method"] for row in rows} == {*plan.METHODS, "this config"}
    assert all(0 < row["efficiency"] <= 1 for row in rows)
    assert picture.stat().st_size > 1000
    assert cli.main(["plan", config, "--workers", "many"]) == 2
    assert cli.main(["plan", config, "--utilisation", "2"]) == 2


def test_the_page_of_errors_is_what_the_benchmark_prints(capsys):
    runpy.run_path(str(ROOT / "benchmarks" / "plan_against_published.py"), run_name="__main__")
    assert capsys.readouterr().out == (ROOT / "docs" / "plan.md").read_text()
    assert np.isfinite(plan.UTILISATION)

"""What workers say of their steps, gathered once in a while: the same lines as at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from test_execute import every_other

import jaxdist as jd
from jaxdist import cli, step_metrics


def loss(params, batch, key):
    # A name that is also ours.
    aux = {"largest": batch.max(), "each": batch, "active": batch.min()}
    return jnp.mean((batch - params) ** 2), aux


def told(algorithm, batches, **named):
    trainer = jd.execute(
        algorithm, loss, workers=8, metrics="workers", finite=True, seed=0, **named
    )
    state, steps = trainer.init(jnp.zeros(3)), {}
    for t, batch in enumerate(batches):
        state, steps[t + 1] = trainer.step(state, batch)
    return trainer, steps


def drawn(steps):
    return np.random.default_rng(0).normal(size=(steps, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("room", [5, 8])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_lines_are_the_means_that_a_step_reports(devices, room):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))
    clock = jd.clock.speeds([1.0] * 7 + [0.5])
    for algorithm, timed in (
        (jd.local_sgd(optax.sgd(0.1), period=3), {"clock": clock}),
        (every_other(), {}),
    ):
        trainer, steps = told(algorithm, drawn(5), mesh=mesh, **timed)
        lines = dict(step_metrics.lines(steps, trainer, jnp.zeros(3), room=room))
        assert list(lines) == [1, 2, 3, 4, 5]
        whole = jd.execute(algorithm, loss, workers=8, mesh=mesh, seed=0, **timed)
        state = whole.init(jnp.zeros(3))
        for t, batch in enumerate(drawn(5)):
            state, expected = whole.step(state, batch)
            expected = {name: float(x) for name, x in expected.items() if x.ndim == 0}
            assert lines[t + 1] == pytest.approx(expected, rel=1e-6)
            assert ("simulated_seconds" in expected) == bool(timed)


def test_the_lines_before_a_value_that_is_not_finite_are_given_and_it_is_named():
    batches = drawn(4)
    batches[2, 5, 1] = np.inf
    trainer, steps = told(jd.local_sgd(optax.sgd(0.1), period=100), batches)
    found = step_metrics.lines(steps, trainer, {"w": jnp.zeros(3)}, room=4)
    assert [next(found)[0], next(found)[0]] == [1, 2]
    with pytest.raises(FloatingPointError, match="step 3: worker 5 .* in its loss"):
        next(found)


def test_metrics_of_nobody_are_refused():
    with pytest.raises(ValueError, match="metrics='worker': expected \"mean\""):
        jd.execute(jd.all_reduce(optax.sgd(0.1)), loss, workers=8, metrics="worker")


def test_nothing_said_is_no_line():
    trainer, _ = told(every_other(), drawn(1))
    assert list(step_metrics.lines({}, trainer, jnp.zeros(3), room=4)) == []


def test_a_run_records_the_same_however_seldom_it_gathers(tmp_path):
    found = {}
    for every in (1, 7, 1000):
        config, folder = tmp_path / f"{every}.py", tmp_path / f"run{every}"
        config.write_text(runs.SMALL.replace("save_every=7", f"save_every=7, report_every={every}"))
        assert cli.main(["train", str(config), "--workdir", str(folder)]) == 0
        found[every] = [
            {name: x for name, x in line.items() if name != "seconds"}
            for line in runs.lines(folder)
        ]
    assert [line["step"] for line in found[1]] == list(range(1, 41))
    assert found[1] == found[7] == found[1000]


def test_many_steps_of_any_number_compile_one_program():
    trainer, steps = told(jd.local_sgd(optax.sgd(0.1), period=3), drawn(5))
    before = step_metrics._packed._cache_size()
    for count in (1, 3, 5):
        some = {step: steps[step] for step in range(1, count + 1)}
        assert len(list(step_metrics.lines(some, trainer, jnp.zeros(3), room=6))) == count
    assert step_metrics._packed._cache_size() == before + 1

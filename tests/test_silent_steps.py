"""Steps that do not communicate execute no collective: in the program as XLA compiles it.

The means of what workers report (loss, and how many of them are active) are one all-reduce a step, or
one for all steps of a scan. With `metrics="workers"` they are not taken, and a silent step is silent.
"""

import cases
import compiled_steps
import jax
import numpy as np
import optax
import pytest
from test_conformance import batch, problem

import jaxdist as jd
from jaxdist.algorithms.base import bytes_sent
from jaxdist.catalogue.local_updates import ENTRIES

LOCAL = pytest.mark.parametrize(
    ("name", "label"), [(name, label) for name in ENTRIES for label in cases.CASES[name]]
)


def reported(algorithm):
    return 4 if algorithm.active is None else 8


def check(found, case, algorithm, *, always, steps=24):
    """Every branch that communicates is taken exactly when `sends` says so, and sends no less."""
    params = cases.start(parts=case.parts)
    assert found.always == always, "a collective was moved out of its conditional"
    for t in range(steps):
        taken = [int(told.split()[1]) for told in case.branches(t)]
        assert len(taken) == len(found.conditionals), "a conditional became something else"
        sent = [branches[k] for branches, k in zip(found.conditionals, taken, strict=True)]
        assert sum(sent) == bytes_sent(algorithm, params, t, workers=8)
    quiet = [t for t in range(steps) if bytes_sent(algorithm, params, t, workers=8) == 0]
    assert quiet or case.parts, "there is no silent step to look at"


@LOCAL
@pytest.mark.parametrize("metrics", [pytest.param("mean", marks=pytest.mark.slow), "workers"])
def test_a_silent_step_executes_no_collective(name, label, metrics):
    data, case = problem(8), cases.case(name, label)
    algorithm = case.make(8)
    trainer = jd.execute(algorithm, cases.loss, workers=8, metrics=metrics)
    state = trainer.init(cases.start(parts=case.parts))
    compiled = trainer.compiled.lower(state, batch(data, 0, np.float32)).compile()
    always = reported(algorithm) if metrics == "mean" else 0
    check(compiled_steps.read(compiled.as_text()), case, algorithm, always=always)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_scan_of_a_whole_round_keeps_the_conditionals_and_reports_once(name):
    case = next(iter(cases.CASES[name].values()))
    data, algorithm = problem(8), case.make(8)
    trainer = jd.execute(algorithm, cases.loss, workers=8)
    state = trainer.init(cases.start(parts=case.parts))
    batches = jax.tree.map(lambda *x: np.stack(x), *(batch(data, t, np.float32) for t in range(12)))
    text = jax.jit(trainer.steps).lower(state, batches).compile().as_text()
    # A loop counts as one trip: what is sent inside would be a twelfth of this.
    check(compiled_steps.read(text), case, algorithm, always=12 * reported(algorithm))


def test_the_law_can_fail():
    data, case = problem(8), cases.case("local_sgd", "period 3")
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), cases.loss, workers=8)
    compiled = trainer.compiled.lower(trainer.init(cases.start()), batch(data, 0, np.float32))
    with pytest.raises(AssertionError, match="moved out"):
        check(compiled_steps.read(compiled.compile().as_text()), case, case.make(8), always=4)

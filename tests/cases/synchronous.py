"""Cases of the methods in which all workers take the same step."""

import optax
import twins
from twins.compressed import ef21, error_feedback, exchanged, gathered, plain, scaled_sign, top

import jaxdist as jd
from cases.base import Case

C = jd.compress


def _compressed(compressor, mean):
    return Case(
        make=lambda W: jd.all_reduce(optax.sgd(0.05, momentum=0.5), compressor=compressor),
        twin=lambda W: dict(inner=twins.momentum(0.05, 0.5), mean=mean),
    )


def _falling(tau):
    return 0.2 / (1.0 + 0.1 * tau)


CASES: dict[str, dict[str, Case]] = {
    "all_reduce": {
        "momentum": Case(
            make=lambda W: jd.all_reduce(optax.sgd(0.1, momentum=0.9, nesterov=True)),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.9, True)),
        ),
        "top_k": _compressed(C.top_k(0.4), plain(gathered(top(2)))),
        "error feedback of signs": _compressed(
            C.error_feedback(C.sign()), error_feedback(exchanged(scaled_sign))
        ),
        "ef21 of top_k": _compressed(C.ef21(C.top_k(0.4)), ef21(gathered(top(2)))),
    },
    "sharded_all_reduce": {
        "momentum": Case(
            make=lambda W: jd.sharded_all_reduce(optax.sgd(0.1, momentum=0.9)),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.9)),
        ),
        "leaves": Case(
            make=lambda W: jd.sharded_all_reduce(optax.sgd(0.1, momentum=0.5, nesterov=True)),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5, True)),
            parts=(1, 4),
        ),
    },
    "lbfgs": {
        "wolfe": Case(make=lambda W: jd.lbfgs(memory=3), twin=lambda W: dict(memory=3)),
        "armijo": Case(
            make=lambda W: jd.lbfgs(memory=5, line_search="armijo"),
            twin=lambda W: dict(memory=5, curvature=None),
        ),
    },
    "noise_scale": {
        "momentum": Case(
            make=lambda W: jd.noise_scale(optax.sgd(0.1, momentum=0.5)),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5)),
        ),
    },
    "adascale": {
        "momentum": Case(
            make=lambda W: jd.adascale(optax.sgd(0.1, momentum=0.5)),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5)),
        ),
        "schedule": Case(
            make=lambda W: jd.adascale(optax.sgd(1.0), schedule=_falling, decay=0.6),
            twin=lambda W: dict(inner=twins.sgd(1.0), schedule=_falling, decay=0.6),
        ),
    },
}

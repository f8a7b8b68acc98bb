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
}

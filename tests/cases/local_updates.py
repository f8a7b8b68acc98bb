"""Cases of the methods with many steps between two messages."""

import optax
import twins
from twins.compressed import ef21, exchanged, scaled_sign

import jaxdist as jd
from cases.base import Case

CASES: dict[str, dict[str, Case]] = {
    "local_sgd": {
        "period 3": Case(
            make=lambda W: jd.local_sgd(optax.sgd(0.1, momentum=0.5), period=3),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), period=3),
            branch=lambda t: f"case {int((t + 1) % 3 == 0)}",
        ),
    },
    "diloco": {
        "nesterov": Case(
            make=lambda W: jd.diloco(
                optax.sgd(0.1, momentum=0.5), optax.sgd(0.7, momentum=0.9, nesterov=True), period=4
            ),
            twin=lambda W: dict(
                inner=twins.momentum(0.1, 0.5), outer=twins.momentum(0.7, 0.9, True), period=4
            ),
            branch=lambda t: f"case {int((t + 1) % 4 == 0)}",
        ),
        "ef21 of signs": Case(
            make=lambda W: jd.diloco(
                optax.sgd(0.1),
                optax.sgd(0.7),
                period=2,
                compressor=jd.compress.ef21(jd.compress.sign()),
            ),
            twin=lambda W: dict(
                inner=twins.sgd(0.1),
                outer=twins.sgd(0.7),
                period=2,
                mean=ef21(exchanged(scaled_sign)),
            ),
            branch=lambda t: f"case {int((t + 1) % 2 == 0)}",
        ),
    },
}

"""Cases of the methods in which workers are stale."""

import optax
import twins

import jaxdist as jd
from cases.base import Case

CASES: dict[str, dict[str, Case]] = {
    "delayed": {
        f"by {delay}": Case(
            make=lambda W, delay=delay: jd.delayed(optax.sgd(0.1, momentum=0.5), delay=delay),
            twin=lambda W, delay=delay: dict(inner=twins.momentum(0.1, 0.5), delay=delay),
        )
        for delay in (3, 0)
    },
}

"""Cases of the methods that are made for compressed messages."""

import optax
import twins
from twins.compressed import top

import jaxdist as jd
from cases.base import Case, over

CASES: dict[str, dict[str, Case]] = {
    "choco": {
        "top_k on a ring": Case(
            make=lambda W: jd.choco(
                optax.sgd(0.1, momentum=0.5),
                jd.topology.ring(W),
                jd.compress.top_k(0.4),
                consensus_step=0.3,
            ),
            twin=lambda W: dict(
                inner=twins.momentum(0.1, 0.5),
                matrix=over(jd.topology.ring(W)),
                compressor=top(2),
                consensus_step=0.3,
            ),
        ),
    },
    "sign_majority": {
        "momentum": Case(
            make=lambda W: jd.sign_majority(optax.sgd(0.1, momentum=0.5)),
            twin=lambda W: dict(inner=twins.momentum(0.1, 0.5)),
        ),
    },
    "one_bit_adam": {
        "warm-up of 4": Case(
            make=lambda W: jd.one_bit_adam(0.05, warmup_steps=4, b1=0.8, b2=0.9),
            twin=lambda W: dict(learning_rate=0.05, warmup_steps=4, b1=0.8, b2=0.9, eps=1e-8),
            branch=lambda t: f"case {int(t < 4)}",
        ),
    },
    "dgc": {
        "two of five": Case(
            make=lambda W: jd.dgc(0.05, ratio=0.4, momentum=0.8),
            twin=lambda W: dict(learning_rate=0.05, momentum=0.8, k=2),
        ),
        "two of five, velocity kept": Case(
            make=lambda W: jd.dgc(0.02, ratio=0.4, momentum=0.6, velocity="kept"),
            twin=lambda W: dict(learning_rate=0.02, momentum=0.6, k=2, masked=False),
        ),
    },
    "demo": {
        "one of three": Case(
            make=lambda W: jd.demo(optax.sgd(0.05), decay=0.9, chunk=3, keep=1),
            twin=lambda W: dict(inner=twins.sgd(0.05), decay=0.9, chunk=3, keep=1),
        ),
    },
}

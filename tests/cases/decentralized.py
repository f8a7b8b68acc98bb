"""Cases of the methods in which a worker talks to its neighbors only."""

import numpy as np
import optax
import twins
from twins.compressed import scaled_sign

import jaxdist as jd
from cases.base import Case, over


def _gossip(topology, order, compressor=None, compress=None):
    def branch(t):
        period, ahead = topology(8).period, order == "combine_then_adapt"
        return None if period == 1 else f"case {(t + ahead) % period}"

    return Case(
        make=lambda W: jd.gossip(
            optax.sgd(0.1, momentum=0.5), topology(W), order=order, compressor=compressor
        ),
        twin=lambda W: dict(
            inner=twins.momentum(0.1, 0.5), matrix=over(topology(W)), order=order, compress=compress
        ),
        branch=branch,
    )


def _row(n):
    """A doubly stochastic matrix that is neither symmetric nor circulant."""
    draw = np.random.default_rng(1)
    perms = [np.eye(n)[draw.permutation(n)] for _ in range(3)]
    return jd.topology.from_matrix(0.4 * np.eye(n) + sum(0.2 * p for p in perms))


CASES: dict[str, dict[str, Case]] = {
    "gossip": {
        f"{name}, {order}": _gossip(topology, order)
        for order in ("adapt_then_combine", "combine_then_adapt", "combine_while_adapt")
        for name, topology in {
            "ring": jd.topology.ring,
            "one-peer": jd.topology.one_peer_exponential,
            "matching": lambda n: jd.topology.random_matching(n, 3, seed=0),
            "star": jd.topology.star,
            "matrix": _row,
        }.items()
        if order == "adapt_then_combine" or name in ("one-peer", "matrix")
    }
    | {
        f"signs, matching, {order}": _gossip(
            lambda n: jd.topology.random_matching(n, 3, seed=0),
            order,
            jd.compress.sign(),
            scaled_sign,
        )
        for order in ("adapt_then_combine", "combine_while_adapt")
    },
}

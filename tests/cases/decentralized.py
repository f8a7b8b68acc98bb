"""Cases of the methods in which a worker talks to its neighbors only."""

import numpy as np
import optax
import twins
from twins.compressed import scaled_sign, top

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


def _rounds(topology):
    """Which branch of a mix with this topology communicates at a step."""
    period = topology(8).period
    return lambda t: None if period == 1 else f"case {t % period}"


def _momentum(method, topology):
    return Case(
        make=lambda W: method(0.1, topology(W), momentum=0.6),
        twin=lambda W: dict(learning_rate=0.1, matrix=over(topology(W)), momentum=0.6),
        branch=_rounds(topology),
    )


def _relay(tree):
    return Case(
        make=lambda W: jd.relay(optax.sgd(0.05, momentum=0.5), tree(W)),
        twin=lambda W: dict(inner=twins.momentum(0.05, 0.5), tree=_links(tree(W))),
    )


def _links(tree):
    return (tree.matrix(0) > 0) & ~np.eye(tree.size, dtype=bool)


def _event_triggered(topology, threshold, decay):
    own = dict(threshold=threshold, decay=decay)
    return Case(
        make=lambda W: jd.event_triggered(optax.sgd(0.1, momentum=0.5), topology(W), **own),
        twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), matrix=over(topology(W)), **own),
        branch=_rounds(topology),
    )


def _row(n):
    """A doubly stochastic matrix that is neither symmetric nor circulant."""
    draw = np.random.default_rng(1)
    perms = [np.eye(n)[draw.permutation(n)] for _ in range(3)]
    return jd.topology.from_matrix(0.4 * np.eye(n) + sum(0.2 * p for p in perms))


def _one_way(n):
    """Column-stochastic: neither symmetric nor row-stochastic, out-degrees 1 to 3."""
    links = np.eye(n) + np.roll(np.eye(n), 1, 0)
    links[n // 2, 0] = links[1, n - 1] = links[2, n - 1] = 1
    return links / links.sum(0)


def _directed(n):
    return jd.topology.from_matrix(_one_way(n))


def _directed_rounds(n):
    """Two rounds, the second with the workers renamed."""
    order = np.roll(np.arange(n), 2)
    return jd.topology.from_matrix([_one_way(n), _one_way(n)[np.ix_(order, order)]])


def _push_sum(topology, delay=0):
    def branch(t):
        period = topology(8).period
        return None if period == 1 else f"case {(t - delay) % period}"

    return Case(
        make=lambda W: jd.push_sum(optax.sgd(0.1, momentum=0.5), topology(W), delay=delay),
        twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), matrix=over(topology(W)), delay=delay),
        branch=branch,
    )


def _tracking(topology, order):
    def branch(t):
        period = topology(8).period
        if period == 1:
            return None
        now, before = f"case {t % period}", f"case {(t - 1) % period}"
        # With adapt_then_combine the tracker goes first, by the round of the step before.
        return (before, now) if order == "adapt_then_combine" else now

    return Case(
        make=lambda W: jd.gradient_tracking(
            optax.sgd(0.05, momentum=0.5), topology(W), order=order
        ),
        twin=lambda W: dict(inner=twins.momentum(0.05, 0.5), matrix=over(topology(W)), order=order),
        branch=branch,
        recursion="gradient_tracking"
        if topology(8).stochastic == "doubly" and order != "push_diging"
        else "push_diging",
    )


def _symmetric(method, topology):
    return Case(
        make=lambda W: method(optax.sgd(0.1, momentum=0.5), topology(W)),
        twin=lambda W: dict(inner=twins.momentum(0.1, 0.5), matrix=over(topology(W))),
    )


def _lazy_ring(n):
    return jd.topology.from_matrix(0.5 * np.eye(n) + 0.5 * jd.topology.ring(n).matrix(0))


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
    "push_sum": {
        "one way": _push_sum(_directed),
        "one-way rounds": _push_sum(_directed_rounds),
        "one-way rounds, delay 3": _push_sum(_directed_rounds, delay=3),
        "one-peer, delay 1": _push_sum(jd.topology.one_peer_exponential, delay=1),
        "one way, top_k": Case(
            make=lambda W: jd.push_sum(
                optax.sgd(0.1, momentum=0.5), _directed(W), compressor=jd.compress.top_k(0.4)
            ),
            twin=lambda W: dict(
                inner=twins.momentum(0.1, 0.5), matrix=over(_directed(W)), compressor=top(2)
            ),
            recursion="compressed_push_sum",
        ),
    },
    "gradient_tracking": {
        f"{name}, {order}": _tracking(topology, order)
        for name, topology, order in (
            ("ring", jd.topology.ring, "adapt_then_combine"),
            ("one-peer", jd.topology.one_peer_exponential, "adapt_then_combine"),
            ("one-way rounds", _directed_rounds, "adapt_then_combine"),
            ("one-peer", jd.topology.one_peer_exponential, "combine_while_adapt"),
            ("one way", _directed, "combine_while_adapt"),
            ("ring", jd.topology.ring, "push_diging"),
            ("one-way rounds", _directed_rounds, "push_diging"),
        )
    },
    "exact_diffusion": {
        "ring": _symmetric(jd.exact_diffusion, jd.topology.ring),
        "star": _symmetric(jd.exact_diffusion, jd.topology.star),
    },
    "d2": {"lazy ring": _symmetric(jd.d2, _lazy_ring)},
    "extra": {"ring": _symmetric(jd.extra, jd.topology.ring)},
    "quasi_global_momentum": {
        "one-peer": _momentum(jd.quasi_global_momentum, jd.topology.one_peer_exponential),
        "matrix": _momentum(jd.quasi_global_momentum, _row),
    },
    "decentlam": {
        "one-peer": _momentum(jd.decentlam, jd.topology.one_peer_exponential),
        "star": _momentum(jd.decentlam, jd.topology.star),
    },
    "relay": {
        "tree": _relay(jd.topology.tree),
        "chain": _relay(jd.topology.chain),
        "star": _relay(jd.topology.star),
    },
    "event_triggered": {
        "decaying": _event_triggered(jd.topology.star, 0.5, 0.9),
        "constant, one-peer": _event_triggered(jd.topology.one_peer_exponential, 0.3, 1.0),
    },
}

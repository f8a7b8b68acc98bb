"""Twins of the methods with local steps between exchanges.

"Every period steps" is after step t when (t + 1) mod period = 0. The state of inner is never reset
by an exchange, except in federated, where a round begins with a fresh one.
"""

from typing import NamedTuple

import numpy as np

from .asynchronous import elastic_averaging_arrivals
from .inner import begin, each
from .problem import Trace, copies


def local_sgd(problem, steps, x0, *, inner, period, start=0):
    """x_i' = x_i + u_i; every period steps x_i <- mean x. (Stich 2019.)

    At steps t < start inner gets mean g instead of g_i: post-local SGD (Lin et al. 2020). The
    states of inner are never averaged.
    """
    X = copies(problem, x0)
    states = begin(inner, X)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        G = problem.gradient(t, X)
        if t < start:
            G = copies(problem, G.mean(0))
        U, states = each(inner, G, states, X)
        X = X + U
        if (t + 1) % period == 0:
            X = copies(problem, X.mean(0))
        trace.record(X, X.mean(0))
    return trace


def slow_momentum(
    problem, steps, x0, *, inner, period, slow_learning_rate, slow_momentum, learning_rate
):
    """SlowMo, Algorithm 1: u = b u + (z - mean x) / lr; z = z - a lr u; x <- z. (Wang et al. 2020.)

    a = slow_learning_rate, b = slow_momentum, lr = learning_rate (the one inner uses). Of the
    paper's three strategies for the state of inner this is "maintain". Readout is z.
    """
    X, z, u = copies(problem, x0), np.array(x0, np.float64), np.zeros(problem.dimension)
    states = begin(inner, X)
    trace = Trace.begin(X, z)
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        X = X + U
        if (t + 1) % period == 0:
            u = slow_momentum * u + (z - X.mean(0)) / learning_rate
            z = z - slow_learning_rate * learning_rate * u
            X = copies(problem, z)
        trace.record(X, z)
    return trace


def block_momentum(
    problem, steps, x0, *, inner, period, momentum, block_learning_rate, nesterov=False
):
    """BMUF: G = mean x - y; D = b D + c G; z = z + D; x <- y. (Chen & Huo 2016.)

    y is the model from which the block began: y = z for classical block momentum; y = z + b D for
    Nesterov block momentum, where G is still taken from y, as in the paper. Readout is z.
    """
    X, z, D = copies(problem, x0), np.array(x0, np.float64), np.zeros(problem.dimension)
    y, states = z, begin(inner, X)
    trace = Trace.begin(X, z)
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        X = X + U
        if (t + 1) % period == 0:
            D = momentum * D + block_learning_rate * (X.mean(0) - y)
            z = z + D
            y = z + momentum * D if nesterov else z
            X = copies(problem, y)
        trace.record(X, z)
    return trace


def diloco(problem, steps, x0, *, inner, outer, period, mean=None):
    """Every period steps d = z - mean x goes as a gradient to outer on z, then x <- z.

    (Douillard et al. 2023, Algorithm 1.) The states of inner live on. Readout is z.
    mean: another mean of the z - x_i, of twins.compressed.
    """
    mean = mean(problem.workers, np.size(x0)) if mean else lambda D: D.mean(0)
    X, z = copies(problem, x0), np.array(x0, np.float64)
    states, outer_state = begin(inner, X), outer.init(z)
    trace = Trace.begin(X, z)
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        X = X + U
        if (t + 1) % period == 0:
            u, outer_state = outer.update(mean(z - X), outer_state, z)
            z = z + u
            X = copies(problem, z)
        trace.record(X, z)
    return trace


def streaming_diloco(
    problem, steps, x0, *, inner, outer, period, fragments, delay=0, blend=0.0, mean=None
):
    """DiLoCo fragment by fragment, what was sent arriving late. (Douillard et al. 2025, Alg. 2.)

    fragments: F index arrays that partition the coordinates; F divides period; delay < period.
    Counting steps from 1, fragment p is applied after the local update of every step s with
    s mod period = (p + 1) period / F mod period: with d = z - (mean x after the local update of
    step s - delay), z = z + outer(d), then x_i <- (1 - blend) z + blend x_i, all on fragment p,
    which has an outer state of its own. (As delay < period, fragment p of z is the same at
    s - delay and just before s.) mean: another mean of the z - x_i, as in diloco, one for each
    fragment.
    Choice: where s - delay < 1 nothing was sent yet, and nothing is applied. Readout is z.
    """
    F = len(fragments)
    assert period % F == 0
    assert 0 <= delay < period
    X, z = copies(problem, x0), np.array(x0, np.float64)
    states, outer_states = begin(inner, X), [outer.init(z[f]) for f in fragments]
    trace, sent = Trace.begin(X, z), {}
    means = [mean(len(X), len(f)) if mean else lambda D: D.mean(0) for f in fragments]
    for s in range(1, steps + 1):
        U, states = each(inner, problem.gradient(s - 1, X), states, X)
        X = X + U
        for p, f in enumerate(fragments):
            turn = (p + 1) * period // F % period
            if (s + delay) % period == turn:
                sent[p, s] = means[p](z[f] - X[:, f])
            if s % period == turn and s - delay >= 1:
                u, outer_states[p] = outer.update(sent[p, s - delay], outer_states[p], z[f])
                z[f] = z[f] + u
                X[:, f] = (1 - blend) * z[f] + blend * X[:, f]
        trace.record(X, z)
    return trace


class Correction(NamedTuple):
    """What federated does to a client's gradient: by its kind, and mu where it has one."""

    kind: str
    mu: float = 0.0


def fedprox(mu):
    """g + mu (x - z), for federated. (Li et al. 2020.)"""
    return Correction("fedprox", mu)


def scaffold():
    """g - c_i + c, for federated. (Karimireddy et al. 2020.)"""
    return Correction("scaffold")


def federated(
    problem,
    steps,
    x0,
    *,
    inner,
    outer=None,
    local_steps,
    cohorts=None,
    client_weights=None,
    correction=None,
    reset=True,
):
    """FedAvg (McMahan et al. 2017), FedOpt (Reddi et al. 2021), and their two corrections.

    Client i is worker i; cohorts[r] lists the clients of round r (None: all, always). In a round
    of local_steps steps the clients of S go from z; then with m = sum w_i x_i / sum w_i over S:
    z <- m when outer is None, else z <- z + outer(z - m). fedprox(mu): inner gets g + mu (x - z).
    scaffold(): inner gets g - c_i + c; after the round dc_i = (mean of i's raw g) - c_i for i in S,
    c_i += dc_i, c += |S| / N mean_S dc (unweighted, as in the paper).
    Choices: inner begins afresh every round (the papers' clients are stateless; reset=False: its
    states live on, untouched while a client is idle). An idle worker stays at z: its row of
    points is a filler. Readout is z.
    """
    N, z = problem.workers, np.array(x0, np.float64)
    weights = np.ones(N) if client_weights is None else np.asarray(client_weights, np.float64)
    kind, mu = correction or Correction("none")
    X, C, c = copies(problem, z), np.zeros((N, problem.dimension)), np.zeros(problem.dimension)
    states, outer_state = begin(inner, X), outer.init(z) if outer else None
    trace = Trace.begin(X, z)
    for t in range(steps):
        if t % local_steps == 0:
            S = list(range(N)) if cohorts is None else list(cohorts[t // local_steps])
            raw, states = np.zeros_like(X), begin(inner, X) if reset else states
        G = problem.gradient(t, X)
        raw = raw + G
        D = {"none": G, "fedprox": G + mu * (X - z), "scaffold": G - C + c}[kind]
        U, new_states = each(inner, D, states, X)
        for i in S:
            X[i], states[i] = X[i] + U[i], new_states[i]
        if (t + 1) % local_steps == 0:
            m = weights[S] @ X[S] / weights[S].sum()
            u, outer_state = outer.update(z - m, outer_state, z) if outer else (m - z, None)
            z = z + u if outer else m
            dC = raw / local_steps - C
            c = c + len(S) / N * dC[S].mean(0)
            C[S] = C[S] + dC[S]
            X = copies(problem, z)
        trace.record(X, z)
    return trace


def elastic_averaging(problem, steps, x0, *, inner, period, attraction, arrivals=None):
    """x_i' = x_i + u_i - a (x_i - z); z' = z + a sum_i (x_i - z). (Zhang et al. 2015, EASGD.)

    x_i and z on the right are those *before* the step, as in the paper. The elastic terms act only
    in the steps t with (t + 1) mod period = 0 (the paper's clock has t mod period = 0, one step
    later: its exchange at t = 0 does nothing). a = attraction. Readout is z. With arrivals one worker
    after another: see elastic_averaging_arrivals.
    """
    if arrivals is not None:
        return elastic_averaging_arrivals(
            problem, steps, x0, inner=inner, arrivals=arrivals, period=period, attraction=attraction
        )
    X, z = copies(problem, x0), np.array(x0, np.float64)
    states = begin(inner, X)
    trace = Trace.begin(X, z)
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        E = attraction * (X - z) if (t + 1) % period == 0 else np.zeros_like(X)
        X, z = X + U - E, z + E.sum(0)
        trace.record(X, z)
    return trace

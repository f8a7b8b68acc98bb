"""Twins of the synchronous methods: everyone holds the same x."""

import numpy as np

from .problem import Trace, copies


def all_reduce(problem, steps, x0, *, inner, mean=None):
    """x' = x + inner(mean g): one optimiser on the mean gradient. (Goyal et al. 2017.)

    mean: another mean, of twins.compressed.
    """
    mean = mean(problem.workers, np.size(x0)) if mean else lambda G: G.mean(0)
    x, state = np.array(x0, np.float64), inner.init(x0)
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        g = mean(problem.gradient(t, copies(problem, x)))
        u, state = inner.update(g, state, x)
        x = x + u
        trace.record(copies(problem, x), x)
    return trace


def sharded_all_reduce(problem, steps, x0, *, inner):
    """ZeRO-1 (Rajbhandari et al. 2020): each worker runs inner on its own 1/W slice of mean g.

    For an elementwise inner this is all_reduce. It is written in slices here; the last slices are
    shorter, or empty, where W does not divide n.
    """
    x = np.array(x0, np.float64)
    slices = np.array_split(np.arange(x.size), problem.workers)
    states = [inner.init(x[s]) for s in slices]
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        g, new = problem.gradient(t, copies(problem, x)).mean(0), x.copy()
        for i, s in enumerate(slices):
            u, states[i] = inner.update(g[s], states[i], x[s])
            new[s] = x[s] + u
        x = new
        trace.record(copies(problem, x), x)
    return trace


def sign_majority(problem, steps, x0, *, inner, sign_of_zero=1.0):
    """x' = x + inner(sign(sum_i sign(g_i))): signSGD with majority vote. (Bernstein et al. 2019.)

    Choice: a bit has no third value, so sign(0) = +1, for a gradient of zero and for a tied vote
    (ties are common when W is even). sign_of_zero sets what a *tie* gives, for another choice.
    """
    x, state = np.array(x0, np.float64), inner.init(x0)
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        votes = np.where(problem.gradient(t, copies(problem, x)) >= 0, 1.0, -1.0).sum(0)
        g = np.where(votes == 0, sign_of_zero, np.sign(votes))
        u, state = inner.update(g, state, x)
        x = x + u
        trace.record(copies(problem, x), x)
    return trace

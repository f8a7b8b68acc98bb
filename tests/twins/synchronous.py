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


def lbfgs(problem, steps, x0, *, memory=10, decrease=1e-4, curvature=0.9, trials=20):
    """x' = x - a H g on the mean of all f_i, with H as a dense matrix. (Nocedal & Wright 2006, ch. 7.)

    H starts at s.y / y.y of the newest pair and takes the BFGS update H <- V'HV + r s s' with
    r = 1/y.s, V = I - r y s', once for each kept pair, oldest first. (H g is then what the two loops
    compute.) Choices: a pair is refused if the cosine of s and y is not above the rounding unit; with
    no pairs H = min(1, 1/|g|). s and y are differences of successive steps, each gradient on the batch
    of its own step. The line search starts at a = 1 and goes to the middle of its bracket, or doubles
    while that has no upper end; curvature=None asks for the sufficient decrease only, and otherwise
    10 rounding units of F are forgiven. After `trials` misses the last point of sufficient decrease
    is taken; if there was none, x stays and the pairs go.
    """
    n = np.size(x0)
    x, before, pairs = np.array(x0, np.float64), None, []
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):

        def F(x, t=t):
            return problem.loss(t, copies(problem, x)).mean()

        def slope(x, d, t=t):
            return problem.gradient(t, copies(problem, x)).mean(0) @ d

        g = problem.gradient(t, copies(problem, x)).mean(0)
        if before is not None:
            s, y = x - before[0], g - before[1]
            norms = np.linalg.norm(s) * np.linalg.norm(y)
            if s @ y > np.finfo(float).eps * norms:
                pairs = [*pairs, (s, y)][-memory:]
        before = x, g
        if pairs:
            s, y = pairs[-1]
            H = (s @ y) / (y @ y) * np.eye(n)
            for s, y in pairs:
                V = np.eye(n) - np.outer(y, s) / (y @ s)
                H = V.T @ H @ V + np.outer(s, s) / (y @ s)
            d = -H @ g
        else:
            d = -g * min(1.0, 1 / np.linalg.norm(g))

        a, taken, low, high = 1.0, 0.0, 0.0, np.inf
        for _ in range(trials):
            blur = 10 * np.finfo(float).eps * abs(F(x)) if curvature else 0.0
            enough = F(x + a * d) <= F(x) + decrease * a * (g @ d) + blur
            tilt = slope(x + a * d, d) / abs(g @ d)
            taken = a if enough else taken
            if enough and (curvature is None or abs(tilt) <= curvature):
                break
            if enough and tilt < 0:
                low = a
            else:
                high = a
            a = 2 * a if high == np.inf else (low + high) / 2
        pairs = pairs if taken else []
        x = x + taken * d
        trace.record(copies(problem, x), x)
    return trace


def adascale(problem, steps, x0, *, inner, schedule=lambda tau: 1.0, decay=None):
    """x' = x + r lr(floor(tau)) inner(mean g), tau' = tau + r. (Johnson et al. 2020.)

    r = (v + m) / (v / W + m), v the variance of one worker's gradient and m = |mean g|^2 - v / W, both
    moving averages without correction, whose decay is 1 - W / 1000; m at least 0.
    """
    W = problem.workers
    keep = max(1 - W / 1000, 0) if decay is None else decay
    x, state, tau, v, m = np.array(x0, np.float64), inner.init(x0), 0.0, 0.0, 0.0
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        G = problem.gradient(t, copies(problem, x))
        spread = G.var(0, ddof=1).sum()
        v = keep * v + (1 - keep) * spread
        m = keep * m + (1 - keep) * ((G.mean(0) ** 2).sum() - spread / W)
        gain = (v + max(m, 0)) / (v / W + max(m, 0))
        u, state = inner.update(G.mean(0), state, x)
        x, tau = x + gain * schedule(np.floor(tau)) * u, tau + gain
        trace.record(copies(problem, x), x)
    return trace

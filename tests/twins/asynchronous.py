"""Twins of the parameter server and of stale gradients.

Time is a list: arrivals[t] names the workers that deliver at step t, in their order. A delivering
worker's gradient is that of its copy on the batch of the step of delivery, t; points[t] are the
copies before step t. Everyone's copy is x0 at first. Readout is the server's x.
"""

import numpy as np

from .inner import begin
from .problem import Trace, copies


def delayed(problem, steps, x0, *, inner, delay):
    """x_(t+1) = x_t + inner(mean_i g_i(x_(t - delay))), with the batch of step t.

    Before time 0 the point is x0, so the first delay + 1 gradients are all taken at x0. One
    optimiser, on the mean; inner sees x_t. (Langford, Smola & Zinkevich 2009.)
    """
    history, state = [np.array(x0, np.float64)], inner.init(x0)
    trace = Trace.begin(copies(problem, x0), x0)
    for t in range(steps):
        g = problem.gradient(t, copies(problem, history[max(t - delay, 0)])).mean(0)
        u, state = inner.update(g, state, history[t])
        history.append(history[t] + u)
        trace.record(copies(problem, history[max(t + 1 - delay, 0)]), history[t + 1])
    return trace


def downpour(problem, steps, x0, *, inner, arrivals, push_every=1, pull_every=1):
    """Downpour SGD: inner runs on the server once for every push. (Dean et al. 2012.)

    A delivery adds g to what the worker has gathered. After its k-th delivery it pushes the *sum*
    when push_every divides k (server: x <- x + inner(sum)), then takes the server's x as its copy
    when pull_every divides k. Between pulls the copy stands still.
    """
    x, X = np.array(x0, np.float64), copies(problem, x0)
    gathered, count, state = np.zeros_like(X), np.zeros(problem.workers, int), inner.init(x)
    trace = Trace.begin(X, x)
    for t in range(steps):
        G = problem.gradient(t, X)
        for i in arrivals[t]:
            gathered[i] += G[i]
            count[i] += 1
            if count[i] % push_every == 0:
                u, state = inner.update(gathered[i], state, x)
                x, gathered[i] = x + u, 0.0
            if count[i] % pull_every == 0:
                X[i] = x
        trace.record(X, x)
    return trace


def stale_synchronous(problem, steps, x0, *, inner, arrivals, bound):
    """SSP: a worker with k deliveries may begin another only if k - min_j k_j <= bound.

    (Ho et al. 2013.) A delivery is one push: x <- x + inner(g). A worker that has pushed pulls at
    the first moment when it may begin again: at once, or when the push of the slowest sets it free.
    So with bound=0 every round's gradients are taken at one point, and a large bound is downpour.
    An arrival of a worker that is still held back is an error in the list.
    """
    x, X = np.array(x0, np.float64), copies(problem, x0)
    count, waiting, state = np.zeros(problem.workers, int), set(), inner.init(x)
    trace = Trace.begin(X, x)
    for t in range(steps):
        G = problem.gradient(t, X)
        for i in arrivals[t]:
            if i in waiting:
                raise ValueError(f"worker {i} may not deliver at step {t}: the bound holds it")
            u, state = inner.update(G[i], state, x)
            x = x + u
            count[i] += 1
            waiting.add(i)
            for j in [j for j in waiting if count[j] - count.min() <= bound]:
                X[j] = x
                waiting.remove(j)
        trace.record(X, x)
    return trace


def delay_compensated(problem, steps, x0, *, inner, arrivals, strength):
    """DC-ASGD: inner gets g + lambda g g (x - copy), with the server's x now. (Zheng et al. 2017.)

    lambda = strength, products by component; x is the server's at the moment of this push. Every
    delivery is a push and then a pull.
    """
    x, X = np.array(x0, np.float64), copies(problem, x0)
    state = inner.init(x)
    trace = Trace.begin(X, x)
    for t in range(steps):
        G = problem.gradient(t, X)
        for i in arrivals[t]:
            u, state = inner.update(G[i] + strength * G[i] * G[i] * (x - X[i]), state, x)
            x = x + u
            X[i] = x
        trace.record(X, x)
    return trace


def hogwild(problem, steps, x0, *, inner, arrivals, shown):
    """Torn reads: who delivers pushes, then reads only the components shown[t][i]. (Niu et al. 2011.)

    x <- x + inner(g) for every delivery; of the copy the components that are not shown stay.
    """
    x, X = np.array(x0, np.float64), copies(problem, x0)
    state = inner.init(x)
    trace = Trace.begin(X, x)
    for t in range(steps):
        G = problem.gradient(t, X)
        for i in arrivals[t]:
            u, state = inner.update(G[i], state, x)
            x = x + u
            X[i] = np.where(shown[t][i], x, X[i])
        trace.record(X, x)
    return trace


def elastic_averaging_arrivals(problem, steps, x0, *, inner, arrivals, period, attraction):
    """Asynchronous EASGD, Algorithm 1 of Zhang et al. 2015: one worker after another.

    A delivery of worker i is one local step, x_i' = x_i + u_i. If period divides its number k,
    counted from 1, then also E = a (x_i - z) with x_i before the step and z as it is now:
    x_i' -= E, z' = z + E. (The paper exchanges when period divides k - 1; see elastic_averaging.)
    """
    z, X = np.array(x0, np.float64), copies(problem, x0)
    states, count = begin(inner, X), np.zeros(problem.workers, int)
    trace = Trace.begin(X, z)
    for t in range(steps):
        G = problem.gradient(t, X)
        for i in arrivals[t]:
            u, states[i] = inner.update(G[i], states[i], X[i])
            count[i] += 1
            E = attraction * (X[i] - z) if count[i] % period == 0 else 0.0
            X[i], z = X[i] + u - E, z + E
        trace.record(X, z)
    return trace

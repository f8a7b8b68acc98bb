"""Twins of the decentralised methods. matrix(t) is [W, W], row = receiver."""

import numpy as np

from .inner import begin, each
from .problem import Trace, copies


def gossip(problem, steps, x0, *, inner, matrix, order="adapt_then_combine", compress=None):
    """Decentralised SGD in its three orders, M = matrix(t).

    adapt_then_combine: x' = M (x + u), g at x (diffusion; Chen & Sayed 2012).
    combine_then_adapt: y = M x, g at y, x' = y + u; points[t] = matrix(t) x_t.
    combine_while_adapt: x' = M x + u, g at x (D-PSGD; Lian et al. 2017).
    Readout is mean x.
    compress: M h becomes h + M C(h) - C(h), C on every row. (Carli et al. 2010; Q2-G in Koloskova et
    al. 2019.)
    """

    def mixed(t, H):
        Q = np.stack([compress(h) for h in H]) if compress else H
        return H + matrix(t) @ Q - Q

    def point(t):
        return mixed(t, X) if order == "combine_then_adapt" else X

    X = copies(problem, x0)
    states = begin(inner, X)
    trace = Trace.begin(point(0), X.mean(0))
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, point(t)), states, point(t))
        X = {
            "adapt_then_combine": mixed(t, X + U),
            "combine_then_adapt": mixed(t, X) + U,  # U was taken at matrix(t) @ X
            "combine_while_adapt": mixed(t, X) + U,  # U was taken at X
        }[order]
        trace.record(point(t + 1), X.mean(0))
    return trace


def push_sum(problem, steps, x0, *, inner, matrix, delay=0):
    """Stochastic gradient push: n' = A (n + u), w' = A w, g at n / w. (Assran et al. 2019, SGP.)

    A = matrix(t) is column-stochastic; w starts at 1. With delay = tau (overlap SGP) a worker keeps
    its own share a_ii at once, and the others' shares reach it tau steps after they were sent, with
    the A of the step that sent them; every step sends.
    Choice: readout is sum n / sum w over all there is, messages in flight included: it moves by the
    plain mean of u, as the mean over nodes and virtual nodes in the paper's analysis.
    """
    N, w, flight = copies(problem, x0), np.ones(problem.workers), []
    states = begin(inner, N)
    trace = Trace.begin(N / w[:, None], N.sum(0) / w.sum())
    for t in range(steps):
        Z = N / w[:, None]
        U, states = each(inner, problem.gradient(t, Z), states, Z)
        keep = np.diag(np.diag(matrix(t)))
        push = matrix(t) - keep
        flight.append((push @ (N + U), push @ w))
        N, w = keep @ (N + U), keep @ w
        if len(flight) > delay:
            dN, dw = flight.pop(0)
            N, w = N + dN, w + dw
        total = N.sum(0) + sum(dN.sum(0) for dN, _ in flight)
        weight = w.sum() + sum(dw.sum() for _, dw in flight)
        trace.record(N / w[:, None], total / weight)
    return trace


def gradient_tracking(problem, steps, x0, *, inner, matrix, order="adapt_then_combine", lag=1):
    """y_t tracks the mean gradient and goes to inner in place of g; y_0 = g_0, unmixed.

    adapt_then_combine: y_t = L (y_(t-1) + g_t - g_(t-1)), x' = M (x + inner(y_t))
    (Aug-DGM, Xu et al. 2015; ATC-DIGing, Nedic et al. 2017b).
    combine_while_adapt: y_t = L y_(t-1) + g_t - g_(t-1), x' = M x + inner(y_t) (DIGing, Nedic,
    Olshevsky & Shi 2017; DSGT, Pu & Nedic 2021).
    M = matrix(t) and L = matrix(t - lag). Choice: lag=1, as in DIGing, where one W(k) takes both
    x(k) to x(k+1) and y(k) to y(k+1); lag=0 mixes y_t with the matrix of the step that uses it.
    They differ only when the matrix varies. Readout is mean x.
    """
    atc = {"adapt_then_combine": True, "combine_while_adapt": False}[order]
    X = copies(problem, x0)
    Y, last, states = np.zeros_like(X), np.zeros_like(X), begin(inner, X)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        G = problem.gradient(t, X)
        if t == 0:
            Y = G
        elif atc:
            Y = matrix(t - lag) @ (Y + G - last)
        else:
            Y = matrix(t - lag) @ Y + G - last
        U, states = each(inner, Y, states, X)
        X, last = matrix(t) @ (X + U) if atc else matrix(t) @ X + U, G
        trace.record(X, X.mean(0))
    return trace


def push_diging(problem, steps, x0, *, inner, matrix, order="push_diging", lag=1):
    """Tracking with push-sum weights: A = matrix(t) and L = matrix(t - lag) column-stochastic.

    x = n / w, w' = A w, g at x, y_0 = g_0, and, with dg = g_t - g_(t-1):
    push_diging: n' = A (n + inner(y_t)), y_t = L y_(t-1) + dg (Nedic, Olshevsky & Shi 2017);
    adapt_then_combine: n' = A (n + inner(y_t)), y_t = L (y_(t-1) + dg);
    combine_while_adapt: n' = A n + inner(y_t), y_t = L y_(t-1) + dg.
    The first is the paper's: it combines n after the step, y before the correction. The others are
    gradient_tracking's two orders. lag as there. Readout is sum n / sum w.
    """
    n_after, y_after = {
        "push_diging": (True, False),
        "adapt_then_combine": (True, True),
        "combine_while_adapt": (False, False),
    }[order]
    N, w = copies(problem, x0), np.ones(problem.workers)
    Y, last, states = np.zeros_like(N), np.zeros_like(N), begin(inner, N)
    trace = Trace.begin(N / w[:, None], N.sum(0) / w.sum())
    for t in range(steps):
        A, X = matrix(t), N / w[:, None]
        G = problem.gradient(t, X)
        if t == 0:
            Y = G
        elif y_after:
            Y = matrix(t - lag) @ (Y + G - last)
        else:
            Y = matrix(t - lag) @ Y + G - last
        U, states = each(inner, Y, states, X)
        N, w, last = A @ (N + U) if n_after else A @ N + U, A @ w, G
        trace.record(N / w[:, None], N.sum(0) / w.sum())
    return trace


def exact_diffusion(problem, steps, x0, *, inner, matrix):
    """psi = x + u; phi = psi + x - psi_previous; x' = (I + W) / 2 phi. (Yuan et al. 2019.)

    psi_previous is x0 at step 0. Readout is mean x.
    """
    X = copies(problem, x0)
    previous, states, eye = X, begin(inner, X), np.eye(problem.workers)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        psi = X + U
        phi = psi + X - previous
        X, previous = (eye + matrix(t)) / 2 @ phi, psi
        trace.record(X, X.mean(0))
    return trace


def d2(problem, steps, x0, *, inner, matrix):
    """x'' = W (2 x' - x + u' - u), first x' = W (x + u). (Tang et al. 2018, D2.)

    Written as the paper writes it, not as exact diffusion with W for (I + W) / 2, which it equals.
    The first step is the rule with x = x' = x0 and u = 0. Readout is mean x.
    """
    X = copies(problem, x0)
    last_X, last_U, states = X, np.zeros_like(X), begin(inner, X)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        X, last_X, last_U = matrix(t) @ (2 * X - last_X + U - last_U), X, U
        trace.record(X, X.mean(0))
    return trace


def extra(problem, steps, x0, *, inner, matrix):
    """x'' = (I + W) x' - (I + W) / 2 x + u' - u; first x' = W x + u. (Shi et al. 2015, EXTRA.)

    The paper has one W; where it varies, both terms take the W of the step. Readout is mean x.
    """
    X = copies(problem, x0)
    last_X, last_U, states, eye = X, np.zeros_like(X), begin(inner, X), np.eye(problem.workers)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        W = matrix(t)
        U, states = each(inner, problem.gradient(t, X), states, X)
        new = W @ X + U if t == 0 else (eye + W) @ X - (eye + W) / 2 @ last_X + U - last_U
        X, last_X, last_U = new, X, U
        trace.record(X, X.mean(0))
    return trace


def quasi_global_momentum(problem, steps, x0, *, learning_rate, matrix, momentum):
    """x' = W (x - lr (b m + g)); m' = b m + (1 - b) (x - x') / lr. (Lin et al. 2021, QG-DSGDm.)

    m starts at 0; b = momentum is both of the paper's beta and mu. Readout is mean x.
    """
    X, m = copies(problem, x0), np.zeros((problem.workers, problem.dimension))
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        new = matrix(t) @ (X - learning_rate * (momentum * m + problem.gradient(t, X)))
        m = momentum * m + (1 - momentum) * (X - new) / learning_rate
        X = new
        trace.record(X, X.mean(0))
    return trace


def decentlam(problem, steps, x0, *, learning_rate, matrix, momentum):
    """q = (x - W (x - lr g)) / lr; m = b m + q; x' = x - lr m. (Yuan et al. 2021, DecentLaM.)

    m starts at 0. Readout is mean x.
    """
    X, m = copies(problem, x0), np.zeros((problem.workers, problem.dimension))
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        q = (X - matrix(t) @ (X - learning_rate * problem.gradient(t, X))) / learning_rate
        m = momentum * m + q
        X = X - learning_rate * m
        trace.record(X, X.mean(0))
    return trace


def _distances(adjacency):
    """The number of hops between every two nodes of a connected undirected graph."""
    reach = np.eye(len(adjacency), dtype=bool)
    hops = np.zeros(adjacency.shape, int)
    while not reach.all():
        hops = hops + ~reach
        reach = reach | (reach.astype(int) @ (np.asarray(adjacency) != 0) > 0)
    return hops


def relay(problem, steps, x0, *, inner, tree):
    """RelaySGD: x_i' = 1/W sum_j h_j(t - max(hops_ij - 1, 0)), h_j(s) = x_j(s) + u_j(s).

    (Vogels et al. 2021.) This is what the messages add up to: what a worker sends at step t carries
    its own h(t) and what it had received by step t - 1, so a neighbour's h comes in the same step
    and every further hop costs one step. Until a worker's h arrives x0 stands for it (h at times
    below 0 is x0), and the division is by W. tree: symmetric adjacency matrix. Readout is mean x.
    """
    X, wait, h = copies(problem, x0), np.maximum(_distances(np.asarray(tree)) - 1, 0), []
    states, W = begin(inner, X), problem.workers
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        h.append(X + U)
        X = np.zeros_like(X)
        for i in range(W):
            for j in range(W):
                s = t - wait[i, j]
                X[i] += (h[s][j] if s >= 0 else np.asarray(x0)) / W
        trace.record(X, X.mean(0))
    return trace


def choco(problem, steps, x0, *, inner, matrix, compressor, consensus_step):
    """Choco-SGD, in the order of Koloskova, Stich & Jaggi 2019, Algorithm 2.

    v = x + u; h_i <- h_i + C(v_i - h_i); x_i' = v_i + gamma sum_j w_ij (h_j - h_i), with the new h.
    h starts at 0 (the paper), not at x0. compressor: a function of one worker's vector.
    gamma = consensus_step. Readout is mean x.
    """
    X, H = copies(problem, x0), np.zeros((problem.workers, problem.dimension))
    states = begin(inner, X)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        W = matrix(t)
        U, states = each(inner, problem.gradient(t, X), states, X)
        V = X + U
        H = H + np.stack([compressor(v - h) for v, h in zip(V, H, strict=True)])
        X = V + consensus_step * (W @ H - W.sum(1)[:, None] * H)
        trace.record(X, X.mean(0))
    return trace


def pairwise(problem, steps, x0, *, inner, matrix, arrivals=None):
    """AD-PSGD: x' = P x + u, g at the copy y that was read when g was begun. (Lian et al. 2018.)

    P = matrix(t) averages pairs. A worker reads its x into y, computes g there, meanwhile is averaged
    with partners, applies the step to the average, and reads again. A pair is averaged, once, in the
    steps in which one of the two delivers. arrivals[t] names who delivers at step t, None everyone:
    then the copy is x at the beginning of the step, and this is gossip's combine_while_adapt. inner
    sees x before the average. Readout is mean x, points are the copies.
    """
    X, Y = copies(problem, x0), copies(problem, x0)
    states = begin(inner, X)
    trace = Trace.begin(Y, X.mean(0))
    for t in range(steps):
        here = set(range(problem.workers)) if arrivals is None else set(arrivals[t])
        U, new_states = each(inner, problem.gradient(t, Y), states, X)
        mixed = matrix(t) @ X
        for i in range(problem.workers):
            partners = set(np.flatnonzero(matrix(t)[i])) - {i}
            if here & (partners | {i}):
                X[i] = mixed[i]
        for i in here:
            X[i], states[i] = X[i] + U[i], new_states[i]
            Y[i] = X[i]
        trace.record(Y, X.mean(0))
    return trace


def event_triggered(problem, steps, x0, *, inner, matrix, threshold, decay=1.0):
    """v = x + u; speak if |v - heard| > threshold decay^t; x' = v + sum_j w_ij (heard_j - heard_i).

    (The trigger of SPARQ-SGD, Singh et al. 2019, without its compression and with consensus step 1.)
    heard[i][j] is the copy that worker i keeps of worker j, itself included; all copies start at x0
    and change only by a message. Readout is mean x.
    """
    W, X = problem.workers, copies(problem, x0)
    heard = [[np.array(x0, float) for _ in range(W)] for _ in range(W)]
    states = begin(inner, X)
    trace = Trace.begin(X, X.mean(0))
    for t in range(steps):
        U, states = each(inner, problem.gradient(t, X), states, X)
        V = X + U
        for j in range(W):
            if np.sqrt(((V[j] - heard[j][j]) ** 2).sum()) > threshold * decay**t:
                for i in range(W):
                    heard[i][j] = V[j].copy()
        w = matrix(t)
        X = np.stack(
            [V[i] + sum(w[i, j] * (heard[i][j] - heard[i][i]) for j in range(W)) for i in range(W)]
        )
        trace.record(X, X.mean(0))
    return trace

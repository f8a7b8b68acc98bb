"""Twins of compressed methods, and what they are made of: compressors and means with a memory.

A compressor here is a function of one vector. A mean is a function without arguments that returns a
fresh mean: a function of what the workers have, [W, n] -> [n], which may remember.
"""

import itertools

import numpy as np

from .inner import begin, each
from .problem import Trace, copies


def top(k):
    """Keep the k coordinates of largest magnitude. (Stich et al. 2018.)"""

    def compress(v):
        out = np.zeros_like(v)
        order = np.argsort(-np.abs(v))[:k]
        out[order] = v[order]
        return out

    return compress


def scaled_sign(v):
    """The signs, sign(0) = 1, times |v|_1 / n. (Karimireddy et al. 2019.)"""
    return np.where(v >= 0, 1.0, -1.0) * np.abs(v).sum() / v.size


def gathered(compress):
    """The mean of what everybody sends to everybody; what each sent; nothing is left out after."""
    return lambda V, residual: (
        np.mean([compress(v) for v in V], 0),
        each_of(compress, V),
        residual,
    )


def each_of(compress, V):
    """The compressor on every worker's vector."""
    return np.stack([compress(v) for v in V])


def exchanged(compress):
    """The two-stage mean. (Tang et al. 2021, 1-bit Adam, section 4; Alistarh et al. 2017.)

    The vector is cut into W parts of ceil(n / W); the last ones are shorter, or empty. Every part of every
    worker is compressed by itself, as long as it is, and sent to the part's owner, who compresses the
    mean, plus what it left out before, again. A residual is filled up with zeros.
    """

    def mean(V, residual):
        W, n = V.shape
        part = -(-n // W)
        ends = [min(o * part, n) for o in range(W + 1)]

        def by_part(v):
            parts = [v[a:b] for a, b in itertools.pairwise(ends)]
            return np.concatenate([compress(p) if p.size else p for p in parts])

        sent = each_of(by_part, V)
        owned = sent.mean(0)
        if residual is not None:
            owned = owned + residual.ravel()[:n]
        again = by_part(owned)
        if residual is not None:
            residual = np.append(owned - again, np.zeros(W * part - n)).reshape(W, part)
        return again, sent, residual

    return mean


def plain(average):
    """A mean without memory."""
    return lambda W, n: lambda G: average(G, None)[0]


def error_feedback(average):
    """p = g + e; send C(p); e = p - C(p). (Karimireddy et al. 2019; second residual: Tang et al.)"""

    def begin_mean(W, n):
        e, second = np.zeros((W, n)), np.zeros((W, -(-n // W)))

        def mean(G):
            nonlocal e, second
            p = G + e
            m, sent, second = average(p, second)
            e = p - sent
            return m

        return mean

    return begin_mean


def ef21(average):
    """h_i += C(g_i - h_i); the mean of all h_i is used. (Richtarik et al. 2021, Algorithm 2, h = 0.)"""

    def begin_mean(W, n):
        h, known, second = np.zeros((W, n)), np.zeros(n), np.zeros((W, -(-n // W)))

        def mean(G):
            nonlocal h, known, second
            m, sent, second = average(G - h, second)
            h, known = h + sent, known + m
            return known

        return mean

    return begin_mean


def push_sum(problem, steps, x0, *, inner, matrix, compressor):
    """Compressed push-sum. (Taheri et al. 2020, Algorithm 2; Toghani & Uribe 2022 for a lazy matrix.)

    v = n + u; h_i += C(v_i - h_i); n' = v - h + A h; w' = A w; g at n / w. h starts at 0, A is
    column-stochastic and does not vary. Readout is sum n / sum w.
    """
    A, N, w = matrix(0), copies(problem, x0), np.ones(problem.workers)
    H, states = np.zeros_like(N), begin(inner, N)
    trace = Trace.begin(N, N.mean(0))
    for t in range(steps):
        Z = N / w[:, None]
        U, states = each(inner, problem.gradient(t, Z), states, Z)
        V = N + U
        H = H + each_of(compressor, V - H)
        N, w = V - H + A @ H, A @ w
        trace.record(N / w[:, None], N.sum(0) / w.sum())
    return trace


def one_bit_adam(problem, steps, x0, *, learning_rate, warmup_steps, b1, b2, eps):
    """1-bit Adam. (Tang et al. 2021, Algorithm 1.)

    Up to warmup_steps Adam on the mean gradient. Then v is what it was; every worker sends
    b1 m + (1 - b1) g_i, through the two-stage mean of scaled signs with both residuals, and the result
    is m. Choices: both moments are divided by 1 - b^k, k being the steps that they averaged, as in Adam;
    a number whose v is 0 has never had a gradient while v was made, and stays.
    """
    x = np.array(x0, np.float64)
    m, v = np.zeros_like(x), np.zeros_like(x)
    compressed = error_feedback(exchanged(scaled_sign))(problem.workers, x.size)
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        G = problem.gradient(t, copies(problem, x))
        if t < warmup_steps:
            m = b1 * m + (1 - b1) * G.mean(0)
            v = b2 * v + (1 - b2) * G.mean(0) ** 2
        else:
            m = compressed(b1 * m + (1 - b1) * G)
        frozen = min(t + 1, warmup_steps)
        v_hat = v / (1 - b2**frozen)
        step = learning_rate * (m / (1 - b1 ** (t + 1))) / (np.sqrt(v_hat) + eps)
        x = x - np.where(v > 0, step, 0.0)
        trace.record(copies(problem, x), x)
    return trace


def dgc(problem, steps, x0, *, learning_rate, momentum, k, masked=True):
    """Deep gradient compression: momentum correction and factor masking. (Lin et al. 2018, Algorithm 4.)

    u_i = m u_i + g_i; v_i += lr u_i; the k largest of v_i are sent, and cleared in v_i and in u_i (in v_i
    alone: not masked). Choice: v contains the learning rate, and the mean over workers is taken.
    """
    x = np.array(x0, np.float64)
    U, V = np.zeros((problem.workers, x.size)), np.zeros((problem.workers, x.size))
    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        U = momentum * U + problem.gradient(t, copies(problem, x))
        V = V + learning_rate * U
        S = each_of(top(k), V)
        U[masked & (S != 0)] = 0
        V[S != 0] = 0
        x = x - S.mean(0)
        trace.record(copies(problem, x), x)
    return trace


def demo(problem, steps, x0, *, inner, decay, chunk, keep):
    """Decoupled momentum. (Peng et al. 2024, Algorithm 1.)

    m_i = decay m_i + g_i; q_i are the `keep` largest components of every chunk of m_i in the
    orthonormal DCT-II, transformed back; m_i -= q_i; x += inner(mean q).
    Choice: chunks of the flat vector, the last one filled with zeros; inner instead of the sign.
    """
    x, state = np.array(x0, np.float64), inner.init(x0)
    n, M = x.size, np.zeros((problem.workers, x.size))
    basis = np.array(
        [
            [np.cos(np.pi * (2 * j + 1) * k / (2 * chunk)) for j in range(chunk)]
            for k in range(chunk)
        ]
    )
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)

    def extract(v):
        rows = np.append(v, np.zeros(-n % chunk)).reshape(-1, chunk)
        return np.concatenate([basis.T @ top(keep)(basis @ row) for row in rows])[:n]

    trace = Trace.begin(copies(problem, x), x)
    for t in range(steps):
        M = decay * M + problem.gradient(t, copies(problem, x))
        Q = each_of(extract, M)
        M = M - Q
        u, state = inner.update(Q.mean(0), state, x)
        x = x + u
        trace.record(copies(problem, x), x)
    return trace

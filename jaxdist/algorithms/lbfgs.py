"""Limited-memory BFGS on the loss of all workers, its history and its dot products shared out."""

from collections.abc import Callable
from typing import Literal, Never, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxdist import faults, waiting, worker
from jaxdist.algorithms.base import Algorithm, Params, State, check_period, refuse_others, widest
from jaxdist.algorithms.membership import recut, remade
from jaxdist.errors import Refused

LineSearch = Literal["wolfe", "armijo"]
EXACT = lax.Precision.HIGHEST  # a TPU would otherwise multiply in bfloat16


def lbfgs(
    *others: Never,
    memory: int = 10,
    line_search: LineSearch = "wolfe",
    decrease: float = 1e-4,
    curvature: float = 0.9,
    trials: int = 20,
) -> Algorithm:
    """L-BFGS on the mean loss of all workers, no worker holding more than 1/W of the history.

    With x the parameters that all workers share, F(x) = 1/W sum_i f_i(x), g(t) its gradient at x(t),
    s(t) = x(t) - x(t-1) and y(t) = g(t) - g(t-1), kept for the last `memory` steps with s.y > 0,

        d      = -H g                      H the BFGS inverse Hessian of those pairs, from s.y / y.y I
        x(t+1) = x(t) + a d                a from a line search on F, started at 1

    Worker i keeps the i-th part of every vector: a gradient arrives there by a reduce-scatter, all
    dot products that the two-loop recursion needs come from one sum over workers (a Gram matrix),
    the recursion runs on coefficients of the kept vectors, and an all-gather puts d together. A trial
    of the line search sends its loss and its slope along d, two numbers. Every decision is taken on
    such sums, so that all workers take the same one.

    `wolfe` doubles and bisects until |slope(a)| <= curvature |slope(0)| as well as
    F(x + a d) <= F(x) + decrease a slope(0), up to the rounding of F, so that the next s.y is
    positive; `armijo` halves until the second holds, with no gradient at the trials. If none does, x
    stays and the history is dropped. Before there is a history, d = -g min(1, 1/|g|).

    It has no inner rule and no learning rate. Give every step the *same* batch, all the data, split
    over the workers: differences of gradients over different examples are noise. Use it for convex or
    smooth models with data that fit. Workers of unequal speed get unequal parts of it by
    `jd.balance` or `jd.portions`, and `jd.data.deal`.

    Args:
      others: nothing; rules and topologies are refused.
      memory: how many pairs are kept.
      line_search: the strong Wolfe conditions or Armijo's alone.
      decrease: the part of the decrease promised by the slope that a step must reach.
      curvature: the part of the slope that may be left; above `decrease`, below 1.
      trials: losses of all workers a step may take at most.

    Returns:
      An `Algorithm`. shared: parameters, the last step length and its number of trials. local: the
      worker's part of the pairs, and of the parameters and the gradient one step ago.

    Raises:
      Refused: a memory or a number of trials below 1, an unknown line search, bounds out of order;
        workers that may be away (`jd.faulty`), with whom their shares would be.

    Communication:
      With P = size(params) in at least float32 bytes, filled up to a multiple of W, per step: one
      reduce-scatter of P, one all-reduce of (2 memory + 3)^2 + 1 numbers, one all-gather of P / W
      out of every worker, and for each trial one all-reduce of two numbers (one for `armijo`).
      Declared is a step with one trial, the usual case; `metrics["trials"]` tells how many there were.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 4), {})
      >>> trainer = jd.execute(jd.lbfgs(), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(2))
      >>> targets = jnp.arange(8.0).reshape(4, 2)
      >>> for _ in range(12):
      ...     state, metrics = trainer.step(state, targets)
      >>> print(trainer.readout(state).round(2))  # the means of the columns
      [3. 4.]

    References:
      Dean et al., Large Scale Distributed Deep Networks, NIPS 2012 (Sandblaster).
      Hager and Zhang, A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line
      Search, SIAM J. Optim. 2005 (the rounding of F).
      Chen, Wang and Zhou, Large-scale L-BFGS using MapReduce, NIPS 2014 (the recursion on
      coefficients).
      Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.
    """
    refuse_others("lbfgs", others)
    check_period("memory", memory)
    check_period("trials", trials)
    if line_search not in get_args(LineSearch):
        raise Refused(
            f"line_search={line_search!r} is unknown; write one of {', '.join(get_args(LineSearch))}"
        )
    if not 0 < decrease < curvature < 1:
        raise Refused(
            f"decrease={decrease!r} and curvature={curvature!r} are not in the order "
            "0 < decrease < curvature < 1; write for example decrease=1e-4, curvature=0.9"
        )

    def init(params: Params) -> State:
        x = _own(_flat(params))
        nothing = jnp.zeros((memory, *x.shape), x.dtype)
        shared = params, jnp.zeros((), x.dtype), jnp.int32(0)
        return State(jnp.int32(0), shared, worker.vary((nothing, nothing, x, jnp.zeros_like(x))))

    def update(grads, state: State, *, key, value, objective) -> State:
        faults.refuse_away(
            "a share of the history is at one worker only", "write jd.all_reduce(optax.lbfgs())"
        )
        if value is None or objective is None:
            raise Refused(
                "jd.lbfgs searches along the loss, and was not given it; write "
                "rule.update(grads, state, params, value=loss, value_fn=loss_of_params)"
            )
        params = state.shared[0]
        S, Y, x_before, g_before = state.local
        flat = _flat(params)
        x, g = _own(flat), worker.scatter(_padded(_flat(grads)).ravel()) / worker.count()

        S = jnp.concatenate([S, (x - x_before)[None]])
        Y = jnp.concatenate([Y, (g - g_before)[None]])
        basis = jnp.concatenate([S, Y, g[None]])
        dots = jnp.dot(basis, basis.T, precision=EXACT).ravel()
        loss = value.astype(dots.dtype)[None] / worker.count()
        *dots, loss = jnp.split(worker.total(jnp.concatenate([dots, loss])), [dots.size])
        gram, loss = dots[0].reshape(len(basis), -1), loss[0]

        coefficients, newest = _two_loops(gram)
        d = worker.gather(jnp.dot(coefficients, basis, precision=EXACT)).ravel()[: flat.size]

        _, restore = ravel_pytree(_wide(params))

        def moved(length: jax.Array) -> Params:
            step = restore(length * d)
            return jax.tree.map(lambda x, u: (x.astype(u.dtype) + u).astype(x.dtype), params, step)

        def along(length: jax.Array) -> tuple[jax.Array, jax.Array]:
            """F and its slope at x + length d; NaN for a slope nobody asked for."""
            point = worker.vary(moved(length))
            if line_search == "armijo":
                return worker.mean(objective(point).astype(d.dtype)), jnp.full((), jnp.nan, d.dtype)
            own, slopes = jax.value_and_grad(objective)(point)
            slope = jnp.dot(_flat(slopes), d, precision=EXACT)
            both = worker.mean(jnp.stack([own.astype(d.dtype), slope]))
            return both[0], both[1]

        length, tried = _search(
            along,
            loss,
            jnp.dot(gram[-1], coefficients, precision=EXACT),
            decrease=decrease,
            curvature=curvature if line_search == "wolfe" else None,
            trials=trials,
        )
        # A refused pair gives its place to no one: the oldest is dropped only for a new one.
        S, Y = (jnp.where(newest, both[1:], both[:-1]) for both in (S, Y))
        S, Y = (jnp.where(length > 0, kept, jnp.zeros_like(kept)) for kept in (S, Y))
        return State(state.step + 1, (moved(length), length, tried), (S, Y, x, g))

    def sends(params: Params, step: int) -> int:
        workers = worker.count()
        flat = jax.eval_shape(_flat, params)
        share = -(-flat.size // workers)
        numbers = (2 * memory + 3) ** 2 + 1 + (2 if line_search == "wolfe" else 1)
        return (workers * share + share + numbers) * flat.dtype.itemsize

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=sends,
        waits=waiting.everyone(),
        report=lambda state: {"step_length": state.shared[1], "trials": state.shared[2]},
        resize=remade(recut, "what is shared goes on; the pairs are cut into new shares"),
    )


def _two_loops(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-H g as coefficients of the rows (s_0.., y_0.., g), and whether the newest pair was taken.

    All pairs but the newest were taken before, or are zeros; a pair of zeros changes nothing.
    """
    pairs = len(gram) // 2
    sy = jnp.stack([gram[i, pairs + i] for i in range(pairs)])
    ss, yy = jnp.diagonal(gram)[:pairs], jnp.diagonal(gram)[pairs : 2 * pairs]
    bent = sy > jnp.finfo(gram.dtype).eps * jnp.sqrt(ss * yy)
    # With the newest refused all of `memory` older ones count, with the newest taken one less.
    used = bent & jnp.where(bent[-1], jnp.arange(pairs) > 0, True)
    rho = jnp.where(used, 1 / jnp.where(used, sy, 1), 0)

    steepest = jnp.zeros(len(gram), gram.dtype).at[-1].set(-1)

    def newer(q: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha = rho[i] * jnp.dot(gram[i], q, precision=EXACT)
        return q.at[pairs + i].add(-alpha), alpha

    def older(q: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        i, alpha = pair
        beta = rho[i] * jnp.dot(gram[pairs + i], q, precision=EXACT)
        return q.at[i].add(alpha - beta), None

    order = jnp.arange(pairs)
    q, alphas = lax.scan(newer, steepest, order, reverse=True)
    last = pairs - 1 - jnp.argmax(used[::-1])
    q = q * jnp.where(used[last], sy[last] / jnp.where(used[last], yy[last], 1), 0)
    q, _ = lax.scan(older, q, (order, alphas))

    size = jnp.sqrt(gram[-1, -1])
    short = steepest / jnp.maximum(size, 1)
    # In exact arithmetic any pair at all gives a direction of descent.
    return jnp.where(jnp.dot(gram[-1], q, precision=EXACT) < 0, q, short), bent[-1]


def _search(
    along: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    loss: jax.Array,
    slope: jax.Array,
    *,
    decrease: float,
    curvature: float | None,
    trials: int,
) -> tuple[jax.Array, jax.Array]:
    """A step length that satisfies the conditions, and how many were tried.

    `low` always holds at the lower end of the bracket, where the loss still falls; at the upper end
    either it does not hold or the loss rises. So there is a good point in between. If the trials run
    out, the last one at which the loss was low counts, or 0.
    """
    zero, one = jnp.zeros_like(loss), jnp.ones_like(loss)
    # Near the minimum the loss no longer shows what the slope still does (Hager and Zhang 2005).
    blur = 10 * jnp.finfo(loss.dtype).eps * jnp.abs(loss) if curvature else zero

    def going(carry) -> jax.Array:
        tried, *_, done = carry
        return (tried < trials) & ~done

    def bisect(carry):
        tried, length, best, lower, upper, _ = carry
        here, tilt = along(length)
        low = here <= loss + decrease * length * slope + blur  # false for NaN
        falls = low & (tilt < curvature * slope) if curvature else jnp.zeros_like(low)
        rises = low & (tilt > -curvature * slope) if curvature else jnp.zeros_like(low)
        lower = jnp.where(falls, length, lower)
        upper = jnp.where(~low | rises, length, upper)
        following = jnp.where(jnp.isinf(upper), 2 * length, (lower + upper) / 2)
        done = low & ~falls & ~rises
        return tried + 1, following, jnp.where(low, length, best), lower, upper, done

    start = jnp.int32(0), one, zero, zero, jnp.full_like(loss, jnp.inf), jnp.bool_(False)
    tried, _, best, *_ = lax.while_loop(going, bisect, start)
    return best, tried


def _wide(tree: Params) -> Params:
    dtype = widest(tree)
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _flat(tree: Params) -> jax.Array:
    return ravel_pytree(_wide(tree))[0]


def _padded(x: jax.Array) -> jax.Array:
    """A vector as one row for each worker."""
    workers = worker.count()
    return jnp.pad(x, (0, -x.size % workers)).reshape(workers, -1)


def _own(x: jax.Array) -> jax.Array:
    return _padded(x)[worker.index()]

"""Synchronous data parallelism whose optimizer state is split over the workers (ZeRO-1)."""

from functools import partial
from typing import Any, Never

import jax
import jax.numpy as jnp
import optax

from jaxdist import reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    PyTree,
    State,
    apply,
    check_rule,
    refuse_others,
    size_bytes,
)
from jaxdist.algorithms.elementwise import check_elementwise
from jaxdist.algorithms.membership import recut, remade
from jaxdist.algorithms.shares import rows, unrows


def sharded_all_reduce(inner: optax.GradientTransformation, *others: Never) -> Algorithm:
    """The step of `jd.all_reduce` with 1/W of the optimizer state on every worker (ZeRO-1).

    With x the parameters that all workers share, P_i the i-th of W equal parts and f_i the loss on
    worker i's data,

        g_i  = P_i (1/W sum_j grad f_j(x))      a reduce-scatter
        y_i  = P_i x + inner(g_i)               on this worker's part alone
        x    = y_1, ..., y_W                    an all-gather

    It sends what an all-reduce sends, because a ring all-reduce is just these two; what it saves is
    memory and arithmetic: with Adam in float32, 8 bytes a parameter become 8/W. Use it in place of
    `jd.all_reduce` where the optimizer state is what does not fit. Parameters and gradients stay
    whole: to split these too, spread a worker over devices with a mesh axis named "fsdp", where the
    state is split with the parameters and `jd.all_reduce` is the method to take.

    Every leaf is flattened and cut by itself, filled up with zeros to a multiple of W, so that rules
    with labels or masks by path work. A rule has to be *elementwise*: what becomes of a number may
    depend on that number's gradients and on nothing else. Adam, Lion, Adagrad, momentum, weight
    decay, schedules and `optax.clip` are. Norms (`optax.clip_by_global_norm`), trust ratios, rules
    for matrices (Muon, Adafactor), masks by shape, noise, and `optax.apply_if_finite` are not, and
    are refused: the program of `inner` is read, for the parameters and for a part of them.

    Args:
      inner: the rule that turns the mean gradient into an update; elementwise. Its memory is split.
      others: nothing; a topology is refused with the method that takes one.

    Returns:
      An `Algorithm`. shared: parameters. local: the state of `inner` for this worker's parts.

    Raises:
      Refused: `inner` is not an optax rule, or is not elementwise (here, or at `trainer.init` where
        that shows only on the parameters); workers that may be away (`jd.faulty`).

    Communication:
      Per step one reduce-scatter of size(params) bytes, in at least float32, and one all-gather of
      size(params) / W bytes out of every worker, both filled up. A TPU's compiler may make an all-reduce
      of the former (docs/overlap.md).

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.sharded_all_reduce(optax.sgd(0.25)), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(20):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.4f}")  # the mean of the four targets
      1.5000

    References:
      Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, SC 2020.
      arXiv:1910.02054
    """
    refuse_others("sharded_all_reduce", others)
    check_rule("inner", inner)
    check = partial(
        check_elementwise,
        inner,
        where="jd.sharded_all_reduce",
        instead="jd.all_reduce(rule)",
        value=jnp.zeros(()),
    )
    check()
    tried: set[Any] = set()  # init is traced several times

    def own(params: Params) -> PyTree:
        return jax.tree.map(lambda x: x[worker.index()], rows(params, worker.count()))

    def init(params: Params) -> State:
        leaves, structure = jax.tree.flatten(params)
        kind = structure, *(x.shape for x in leaves), worker.count()
        if kind not in tried:
            check(params, jax.eval_shape(own, params), of=range(len(leaves)))
            tried.add(kind)
        return State(jnp.int32(0), params, worker.vary(inner.init(own(params))))

    def update(grads, state: State, *, key, value, objective) -> State:
        x = state.shared
        g = reduction.scattered_mean(rows(grads, worker.count()))
        y, inner_state = apply(inner, g, state.local, own(x), value=worker.mean(value))
        return State(state.step + 1, unrows(reduction.gathered(y), x), inner_state)

    def sends(params: Params, step: int) -> int:
        workers = worker.count()
        filled = jax.eval_shape(lambda params: rows(params, workers), params)
        wide = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, worker.accumulation_dtype(x.dtype)), filled
        )
        return size_bytes(wide) + size_bytes(filled) // workers

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared,
        update=update,
        readout=lambda state: state.shared,
        sends=sends,
        waits=waiting.everyone(),
        resize=remade(
            recut, "what is shared goes on; the memory of the rule is cut into new shares"
        ),
    )

"""Choco-SGD: compressed gossip in which everybody remembers what the neighbors know of it."""

import jax
import jax.numpy as jnp
import optax

from jaxdist import compensated, mixing, reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    apply,
    check_rule,
    local_init,
)
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.algorithms.neighbors import check_doubly_stochastic, exchanges
from jaxdist.compensated import nothing, plus, scaled
from jaxdist.compress import Compressor, contractive
from jaxdist.compress.base import check_compressor
from jaxdist.errors import Refused
from jaxdist.topology import Topology


def choco(
    inner: optax.GradientTransformation,
    topology: Topology,
    compressor: Compressor,
    *,
    consensus_step: float,
) -> Algorithm:
    """Choco-SGD: send what is new against your public copy, and move towards those of the neighbors.

    With x_i the parameters of worker i, h_i its copy that all who listen to it know, u_i the update of
    `inner`, C the compressor, W the mixing matrix and c the consensus step,

        v_i  = x_i + u_i
        h_i <- h_i + C(v_i - h_i)                      all that travels
        x_i <- v_i + c sum_j W_ij (h_j - h_i)

    The copies start at 0. The mean of the workers moves by the mean of their updates, whatever C does.
    As x settles, the difference that is compressed vanishes, and so does the error of C: it converges
    for any C that contracts, with a consensus step that is small enough (about its delta; with too
    large a one the copies diverge). The copies of the neighbors stay equal to their owners', for all add the
    same payloads; as the weights do not change, a worker keeps no more of them than what moves it.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates; its memory stays
        with the worker.
      topology: who listens to whom, doubly stochastic, the same at every step.
      compressor: what travels, for example `jd.compress.top_k(0.01)`. An unbiased one is shrunk until it
        contracts.
      consensus_step: how far to move towards the neighbors, above 0 and at most 1.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters, the state of `inner`, the copy h_i,
      sum_j W_ij (h_j - h_i), and what rounding drops of that sum and of the parameters, all in at
      least float32.

    Raises:
      Refused: a rule that is not optax's, a topology that varies or is not doubly stochastic, a
        compressor that is none or has a memory of its own, a consensus step out of its bounds.

    Communication:
      Per step, compressor.bytes(params) out of every worker for each neighbor it listens to. The
      readout is one all-reduce of size(params) bytes.

    Example:
      One of four numbers travels:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.choco(
      ...     optax.sgd(0.05), jd.topology.ring(4), jd.compress.top_k(0.25), consensus_step=0.2
      ... )
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(4))
      >>> for _ in range(300):
      ...     state, metrics = trainer.step(state, jnp.arange(16.0).reshape(4, 4))
      >>> print(trainer.readout(state).round(2))
      [6. 7. 8. 9.]

    References:
      Koloskova, Stich, Jaggi, Decentralized Stochastic Optimization and Gossip Algorithms with
      Compressed Communication, ICML 2019. arXiv:1902.00340
    """
    check_rule("inner", inner)
    check_doubly_stochastic("choco", topology)
    check_compressor("jd.choco", compressor)
    if topology.period != 1:
        raise Refused(
            f"jd.choco keeps a sum of its neighbors' copies and {topology.name} changes neighbors; "
            f"write jd.topology.exponential({topology.size})"
        )
    if not isinstance(consensus_step, int | float) or not 0 < consensus_step <= 1:
        raise Refused(
            f"consensus_step={consensus_step!r} is not above 0 and at most 1; write for example "
            "consensus_step=0.1, and less for a coarser compressor"
        )
    contracting = contractive(compressor)

    def init(params: Params) -> State:
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, worker.accumulation_dtype(x.dtype)), params
        )
        local = params, local_init(inner, params), worker.vary(zeros), worker.vary(nothing(params))
        local = *local, worker.vary(zeros)
        return State(jnp.int32(0), (), local)

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state, own, flow, rest = state.local
        params, inner_state = apply(
            inner, grads, inner_state, params, value=value, objective=objective
        )
        news = jax.tree.map(lambda x, h: x.astype(h.dtype) - h, params, own)
        change, told = mixing.change_compressed(
            news, topology, state.step, compressor=contracting, key=key
        )
        own = jax.tree.map(jnp.add, own, told)
        # The difference is summed up by itself, not taken of two sums of copies: over all workers it
        # cancels, and what rounding would leave of it would move the mean at every step.
        flow = plus(flow, change)
        params, rest = compensated.moved(params, rest, scaled(flow, consensus_step))
        return State(state.step + 1, (), (params, inner_state, own, flow, rest))

    def sends(params: Params, step: int) -> int:
        wide = jax.eval_shape(init, params).local[2]
        return exchanges(topology, step) * contracting.bytes(wide)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=sends,
        waits=waiting.neighbors(topology),
        resize=AVERAGED,
    )

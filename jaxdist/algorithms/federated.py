"""Federated averaging: clients of whom few take part in a round, each with many steps on its own data."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from numpy.typing import ArrayLike

from jaxdist import presence, reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    Resize,
    State,
    apply,
    check_period,
    check_rule,
    local_init,
    size_bytes,
)
from jaxdist.algorithms.diloco import displacement
from jaxdist.algorithms.membership import averaged
from jaxdist.cohort import Cohort, cohort
from jaxdist.errors import Refused

PyTree = Any


class FedProx(NamedTuple):
    """What `fedprox` returns."""

    mu: float


class Scaffold(NamedTuple):
    """What `scaffold` returns."""


def fedprox(mu: float) -> FedProx:
    """The correction of FedProx for `federated`: a pull of strength `mu` toward the round's start.

    Raises:
      Refused: mu below 0.
    """
    if not mu >= 0:
        raise Refused(f"mu={mu!r}: expected a number of at least 0; write jd.fedprox(0.01)")
    return FedProx(mu)


def scaffold() -> Scaffold:
    """The correction of SCAFFOLD for `federated`: each client's gradient, less its drift."""
    return Scaffold()


def federated(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation | None = None,
    *,
    local_steps: int,
    clients_per_round: int | None = None,
    clients: int | None = None,
    client_weights: ArrayLike | None = None,
    correction: FedProx | Scaffold | None = None,
    seed: int = 0,
) -> Algorithm:
    """FedAvg and FedOpt: clients start a round from z, and z moves by what they added up to.

    With S the clients of the round, x_i the parameters of client i and u_i(g) the update that `inner`
    returns for a gradient g, at each of the `local_steps` steps of a round, and then at its end,

        x_i <- x_i + u_i(g_i)                                          for i in S
        d    = z - sum_S w_i x_i / sum_S w_i;   z <- z + outer(d);     x_i <- z

    `outer=None` means z <- z - d, the weighted mean: FedAvg. `outer=optax.adam(...)` is FedAdam, and so
    for any optax rule: FedOpt. `inner` begins each round afresh, as the papers' clients keep nothing
    (random keys in it go on): **a schedule of the learning rate inside it starts anew each round**, and
    never comes beyond step `local_steps`. Where the clients' data differ they drift apart within a round, and
    the mean stops short of the common minimum; two corrections of g_i are known:

        jd.fedprox(mu)    g_i + mu (x_i - z)
        jd.scaffold()     g_i - c_i + c, and at the end of the round, for i in S,
                          dc_i = (mean of the round's g_i) - c_i;   c_i += dc_i;
                          c   += |S|/N mean_S dc_i

    FedProx damps the drift and slows down with it; SCAFFOLD removes it, for a second message and a
    vector kept for each client. Taking the mean of the raw gradients for c_i is, for SGD, the paper's
    option II, and needs no learning rate.

    A client is a worker, unless `clients` says that there are more. Then each worker owns
    clients / workers of them, and in each round is one of these, drawn by `jd.cohort`; the data stream
    has to feed it that client's examples: `jd.data.Stream(..., visit=...)`. What is kept for each
    client (c_i) is a bank that never leaves its worker; a step costs the same for any number of
    clients (0.58 ms with 8 and 0.59 ms with 1024 on 8 workers, digits MLP, SCAFFOLD, one CPU device).

    Args:
      inner: the local rule. It sees one client's gradients and never communicates.
      outer: the server's rule for the displacement; runs once for all. None: the weighted mean.
      local_steps: steps in a round.
      clients_per_round: how many workers take part in a round, drawn anew each round; the others
        compute and count for nothing. None: all.
      clients: N, a multiple of the number of workers. None: as many as workers, client i being worker i.
      client_weights: w above by client, [clients], positive: sizes of their data. None: all alike.
      correction: `jd.fedprox(mu)`, `jd.scaffold()` or None.
      seed: of the draws of clients; give `jd.cohort` the same.

    Returns:
      An `Algorithm`. shared: z, the state of `outer` and, with SCAFFOLD, c. local: parameters and the
      state of `inner` and, with SCAFFOLD, the sum of the round's gradients, c_i and the bank of c_i,
      leaves `[clients / workers, ...]`.

    Raises:
      Refused: a number of steps below 1, clients that the workers do not divide, more clients in a
        round than workers, weights that are not positive or not one for each client, a rule that is
        not optax's, an unknown correction.

    Communication:
      One all-reduce at the end of a round, of the displacement in at least float32: size(params) bytes
      for float32 parameters, twice that with SCAFFOLD. Who was drawn is computed, not sent.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, b, key: (b["curvature"] * (x - b["target"]) ** 2, {})
      >>> batch = {"curvature": jnp.array([1.0, 3.0]), "target": jnp.array([0.0, 4.0])}
      >>> for correction in (None, jd.fedprox(1.0), jd.scaffold()):
      ...     algorithm = jd.federated(optax.sgd(0.1), local_steps=5, correction=correction)
      ...     trainer = jd.execute(algorithm, loss, workers=2)
      ...     state = trainer.init(jnp.zeros(()))
      ...     for _ in range(200):
      ...         state, metrics = trainer.step(state, batch)
      ...     print(f"{trainer.readout(state):.3f}")
      2.382
      2.426
      3.000

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
      AISTATS 2017. arXiv:1602.05629
      Reddi et al., Adaptive Federated Optimization, ICLR 2021. arXiv:2003.00295
      Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020. arXiv:1812.06127
      Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020.
      arXiv:1910.06378
    """
    check_rule("inner", inner)
    if outer is not None:
        check_rule("outer", outer)
    check_period("local_steps", local_steps)
    if not isinstance(correction, FedProx | Scaffold | None):
        raise Refused(
            f"correction={correction!r} is unknown; write jd.fedprox(0.01), jd.scaffold() or None"
        )
    weights = None if client_weights is None else _weights(client_weights)
    server = optax.sgd(1.0) if outer is None else outer
    mu = correction.mu if isinstance(correction, FedProx) else None
    controlled = isinstance(correction, Scaffold)

    def drawn() -> Cohort:
        workers = worker.count()
        found = cohort(clients or workers, workers, seed, clients_per_round=clients_per_round)
        if weights is not None and len(weights) != found.clients:
            raise Refused(
                f"client_weights has {len(weights)} entries for {found.clients} clients: expected one for "
                "each; write np.array([len(shard) for shard in shards])"
            )
        return found

    def take_part(round: jax.Array) -> jax.Array:
        return drawn().delivers(round, alive=presence.alive())

    def slot(round: jax.Array) -> jax.Array:
        """Which of its own clients this worker is: a row of its bank."""
        who = drawn()
        return who(round)[worker.index()] % (who.clients // who.workers)

    def weighted(d: Params, round: jax.Array) -> Params:
        """This worker's part of the round's displacement; the mean over all workers is the whole."""
        if clients_per_round is None and weights is None:
            return d
        who = drawn()
        counted = jnp.ones(who.workers)
        if weights is not None:
            counted = jnp.asarray(weights, counted.dtype)[who(round)]
        counted = jnp.where(take_part(round), counted, 0)
        everybody = jnp.asarray(worker.headcount()).astype(counted.dtype)
        total = counted.sum()
        share = (counted * everybody / jnp.where(total > 0, total, 1))[worker.index()]
        return jax.tree.map(lambda d: share.astype(d.dtype) * d, d)

    def init(params: Params) -> State:
        own = drawn().clients // worker.count()
        zeros = optax.tree.zeros_like(params)
        bank = jax.tree.map(lambda x: jnp.zeros((own, *x.shape), x.dtype), params)
        return State(
            jnp.int32(0),
            (params, server.init(params), zeros if controlled else ()),
            (params, local_init(inner, params), (zeros, zeros, bank) if controlled else ()),
        )

    def update(grads, state: State, *, key, value, objective) -> State:
        z, _, c = state.shared
        x, inner_state, memory = state.local
        t = state.step
        round, last = t // local_steps, (t + 1) % local_steps == 0

        here = jnp.bool_(True)
        if clients_per_round is not None:
            here = take_part(round)[worker.index()]

        corrected, dc, c_i, raw, bank = grads, (), (), (), ()
        if mu is not None:
            corrected = jax.tree.map(lambda g, x, z: g + mu * (x - z), grads, x, z)
        elif controlled:
            raw, c_i, bank = memory  # c_i is a copy of this round's row of the bank
            corrected = jax.tree.map(lambda g, c_i, c: g - c_i + c, grads, c_i, c)
            raw = jax.tree.map(jnp.add, raw, grads)
            dc = jax.tree.map(
                lambda raw, c_i: jnp.where(here, raw / local_steps - c_i, 0), raw, c_i
            )
            raw = jax.tree.map(lambda raw: jnp.where(last, 0, raw), raw)

        moved, inner_state = apply(
            inner, corrected, inner_state, x, value=value, objective=objective
        )
        x = jax.tree.map(lambda new, old: jnp.where(here, new, old), moved, x)

        def agreed(rooms):
            (z, server_state, c), (x, inner_state), (c_i, _), own_dc = rooms
            d = weighted(jax.tree.map(displacement, z, x), round)
            d, dc = reduction.mean((d, own_dc))
            d = jax.tree.map(lambda d, z: d.astype(z.dtype), d, z)
            z, server_state = apply(server, d, server_state, z)
            if controlled:
                part = worker.count() / drawn().clients
                c = jax.tree.map(lambda c, dc: c + part * dc, c, dc)
            fresh = jax.tree.map(_afresh, local_init(inner, z), inner_state)
            c_i = jax.tree.map(jnp.add, c_i, own_dc)
            following = jax.tree.map(
                partial(_next_row, now=slot(round), then=slot(round + 1)), bank, c_i
            )
            local = (z, fresh), (c_i, following), own_dc
            return (z, server_state, c), *worker.vary(local)

        rooms = state.shared, *worker.vary(((x, inner_state), (c_i, c_i), dc))
        if local_steps == 1:
            shared, local, (c_i, following), _ = agreed(rooms)
        else:
            shared, local, (c_i, following), _ = lax.cond(last, agreed, lambda kept: kept, rooms)
        # The bank is read inside the conditional and written after it, one row at every step: XLA
        # would copy a bank that leaves a conditional, or whose reading may come after the writing.
        bank = jax.tree.map(partial(_written, at=slot(round)), bank, c_i)
        return State(t + 1, shared, (*local, (raw, following, bank) if controlled else ()))

    def sends(params: Params, step: int) -> int:
        wide = jax.eval_shape(lambda p: jax.tree.map(displacement, p, p), params)
        return (1 + controlled) * size_bytes(wide) * ((step + 1) % local_steps == 0)

    def resized(state: State, fresh: State) -> State:
        round, late = divmod(int(state.step), local_steps)
        some = (clients, clients_per_round, weights) != (None, None, None)
        if some and late:
            raise Refused(
                f"step {int(state.step)} is in the middle of a round of jd.federated, whose clients are "
                f"drawn for one number of workers; resize it after a multiple of {local_steps} steps"
            )
        *own, memory = state.local
        local = averaged(own, list(fresh.local[:2]))
        if controlled:
            (raw, _, bank), (zeros, _, new) = memory, fresh.local[2]
            bank = averaged(bank, new) if clients is None else _dealt(bank, new)
            workers, own = jax.tree.leaves(bank)[0].shape[:2]
            who = cohort(workers * own, workers, seed, clients_per_round=clients_per_round)(round)
            c_i = jax.tree.map(lambda rows: rows[np.arange(workers), who % own], bank)
            memory = averaged(raw, zeros), c_i, bank
        return State(state.step, state.shared, (*local, memory))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: state.shared[0],
        active=None
        if clients_per_round is None
        else lambda state: take_part(state.step // local_steps)[worker.index()],
        sends=sends,
        waits=waiting.everyone(period=local_steps),
        resize=Resize(
            resized,
            "the server goes on; everybody goes on from the workers' mean parameters; of a bank every "
            "client keeps its control variate, else everybody has their mean",
        ),
    )


def _written(bank: jax.Array, row: jax.Array, *, at: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(bank, row, at, 0)


def _next_row(bank: jax.Array, row: jax.Array, *, now: jax.Array, then: jax.Array) -> jax.Array:
    """Row `then` of a bank into which `row` is yet to be written at `now`."""
    return jnp.where(now == then, row, lax.dynamic_index_in_dim(bank, then, keepdims=False))


def _dealt(bank: Any, fresh: Any) -> Any:
    """The same clients as the rows of other workers, `[workers, clients / workers, ...]`."""

    def dealt(rows: Any, new: Any) -> Any:
        if rows.shape[0] * rows.shape[1] != new.shape[0] * new.shape[1]:
            raise Refused(
                f"the bank has {rows.shape[0] * rows.shape[1]} clients and {new.shape[0] * new.shape[1]} "
                "are expected; write the number it was saved with: jd.federated(..., clients=...)"
            )
        return np.asarray(rows).reshape(new.shape)

    return jax.tree.map(dealt, bank, fresh)


def _afresh(fresh: Any, old: Any) -> Any:
    """A random key goes on: the noise of every round would be the same otherwise."""
    return old if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else fresh


def _weights(given: ArrayLike) -> np.ndarray:
    weights = np.asarray(given, np.float64)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights > 0)).all():
        raise Refused(
            f"client_weights={given!r}: expected one positive number for each client; write "
            "np.array([len(shard) for shard in shards])"
        )
    return weights

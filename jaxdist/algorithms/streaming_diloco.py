"""Streaming DiLoCo: one fragment of the parameters at a time, what was sent arriving later."""

from collections.abc import Callable
from functools import partial
from typing import Any, Never

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Branches,
    Params,
    State,
    apply,
    check_fraction,
    check_period,
    check_rule,
    local_init,
    refuse_others,
)
from jaxdist.algorithms.diloco import displacement
from jaxdist.algorithms.membership import AVERAGED, averaged, remade, residuals
from jaxdist.compress import Compressor, Feedback
from jaxdist.errors import Refused

PyTree = Any


def streaming_diloco(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *others: Never,
    period: int,
    fragments: int | PyTree,
    delay: int = 0,
    blend: float = 0.0,
    compressor: Compressor | Feedback | None = None,
) -> Algorithm:
    """DiLoCo whose messages are small, spread over the period, and have local steps to arrive.

    The parameters are cut into F fragments. With z the outer parameters, x_i those of worker i, u_i
    the update of `inner`, and steps counted from 1, at every step s first x_i <- x_i + u_i; then, of
    the fragment p whose turn it is,

        d_p  = z_p - 1/W sum_j x_jp                 of the parameters after step s - delay
        z_p <- z_p + outer_p(d_p)                   at every s with s mod period
        x_ip <- (1 - blend) z_p + blend x_ip        = (p + 1) period / F mod period

    So every fragment is sent once a period, one of them every period / F steps: the peak of the
    traffic is F times lower than DiLoCo's, and a message has `delay` local steps to arrive: it is
    sent before the gradient of step s - delay + 1. `jd.execute(..., overlap=True)` lets an accelerator
    compute that gradient meanwhile (docs/overlap.md). `blend` keeps part of what a worker learned
    meanwhile. What would have been sent before step 1 is not applied. With one fragment, no delay and
    no blend it is `diloco`.

    Args:
      inner: the local rule (AdamW in the paper). It never communicates; its memory stays.
      outer: the rule for the displacement; runs for each fragment by itself, with a state of its own.
      others: nothing; a topology is refused with the method that takes one.
      period: local steps from one outer step of a fragment to its next; F divides it.
      fragments: F, leaf l in the order of `jax.tree.leaves` being in fragment l mod F; or a pytree like
        the parameters that holds a label for each leaf: equal labels, one fragment, in sorted order.
      delay: steps from sending to applying, at least 0 and below `period`.
      blend: the part of its own a worker keeps, at least 0 and below 1; the paper takes 0.5 with a
        delay, 0 without.
      compressor: what travels of a displacement, as in `diloco` (the paper sends 4 bits a number, as
        `jd.compress.int4()` does); with a memory every fragment has its own.

    Returns:
      An `Algorithm`. shared: outer parameters, one state of `outer` for each fragment and, with a
      delay above 1, the displacements that are under way. local: parameters and the state of `inner`. The
      memory of a compressor stands in both rooms.

    Raises:
      Refused: a period that F does not divide, a delay of a period or more, a blend outside 0 to 1,
        fragments without a leaf, labels of another structure, a rule that is not optax's.

    Communication:
      One all-reduce every period / F steps, of one fragment's displacement in at least float32: about
      size(params) / F bytes for float32 parameters. Nothing in between, nothing for the readout. With
      a compressor, its payload instead, as in `all_reduce`.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x["a"] + x["b"] - target) ** 2), {})
      >>> algorithm = jd.streaming_diloco(
      ...     optax.sgd(0.05), optax.sgd(0.7), period=4, fragments=2, delay=1, blend=0.5
      ... )
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init({"a": jnp.zeros(()), "b": jnp.zeros(())})
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{sum(trainer.readout(state).values()):.3f}")
      1.500

    References:
      Douillard et al., Streaming DiLoCo with overlapping communication: Towards a Distributed Free
      Lunch, 2025. arXiv:2501.18512
    """
    refuse_others("streaming_diloco", others)
    check_rule("inner", inner)
    check_rule("outer", outer)
    check_period("period", period)
    check_period("delay", delay, least=0)
    check_fraction("blend", blend)
    if isinstance(fragments, int):
        check_period("fragments", fragments)
    count = fragments if isinstance(fragments, int) else len(set(jax.tree.leaves(fragments)))
    if count == 0 or period % count:
        raise Refused(
            f"period={period} is not a multiple of the {count} fragments; write "
            f"period={max(count, round(period / max(count, 1)) * count)}"
        )
    if delay >= period:
        raise Refused(
            f"delay={delay} is not below period={period}: a fragment would be sent again before it "
            f"arrives; write delay={period - 1} or less"
        )
    turn = period // count
    early = max(delay, 1)  # so many steps after those that were taken, what is sent now is applied
    how = reduction.reducer(compressor)

    def whose(step: jax.Array) -> jax.Array:
        """1 + the fragment that is applied at this step, counted from 1; 0 if none is."""
        p = (step // turn - 1) % count
        return jnp.where((step > delay) & (step % turn == 0), p + 1, 0)

    def in_turn(which: Any, one: Callable[[int, Any], Any], rooms: Any) -> Any:
        """`one(p, rooms)` of fragment p = which - 1, or the rooms as they are."""
        branches = [lambda kept: kept, *(partial(one, p) for p in range(count))]
        return (
            branches[which](rooms) if isinstance(which, int) else lax.switch(which, branches, rooms)
        )

    def init(params: Params) -> State:
        leaves = jax.tree.leaves(params)
        groups = _groups(params, fragments)
        outer_states = [outer.init(_take(leaves, own)) for own in groups]
        under_way = [jnp.zeros_like(z) for z in leaves] if delay > 1 else []
        memories = [how.init(_displacements(leaves, leaves, own)) for own in groups]
        known, kept = ([memory[room] for memory in memories] for room in (0, 1))
        local = params, local_init(inner, params), kept
        return State(jnp.int32(0), (leaves, outer_states, under_way, known), local)

    def sending(step: jax.Array) -> jax.Array:
        """1 + the fragment that is sent in the step after so many; 0 if none is."""
        return whose(step + early)

    def update(grads, state: State, *, key, value, objective, branch=None) -> State:
        z, outer_states, under_way, known = state.shared
        x, inner_state, kept = state.local
        x, kept = worker.vary(x), worker.vary(kept)
        groups = _groups(x, fragments)
        start, structure = jax.tree.flatten(x)
        moved, inner_state = apply(inner, grads, inner_state, x, value=value, objective=objective)
        x = jax.tree.leaves(worker.vary(moved))
        step = state.step + 1

        def sent(p: int, rooms, x: list[jax.Array]):
            d, known, kept = rooms
            own = _displacements(z, x, groups[p])
            mean, (new, left) = how.mean(
                own, (known[p], kept[p]), key=key, step=means_before(p, state.step + early)
            )
            mean = [d.astype(z[i].dtype) for d, i in zip(mean, groups[p], strict=True)]
            return _put(d, groups[p], mean), _put(known, [p], [new]), _put(kept, [p], [left])

        def applied(p: int, rooms, d: list[jax.Array]):
            z, outer_states, x = rooms
            own = _take(d, groups[p])
            new, outer_state = apply(outer, own, outer_states[p], _take(z, groups[p]))
            kept = [_blended(z, x[i], blend) for z, i in zip(new, groups[p], strict=True)]
            states = _put(outer_states, [p], [outer_state])
            return _put(z, groups[p], new), states, _put(x, groups[p], kept)

        def at_once(p: int, rooms):
            *rooms, known, kept = rooms
            d, known, kept = sent(p, (z, known, kept), x)
            return *applied(p, rooms, d), known, kept

        if delay:
            # Of the parameters before this step's update: the exchange waits for no gradient.
            now = sending(state.step) if branch is None else branch
            d = under_way or [jnp.zeros_like(own) for own in z]
            d, known, kept = in_turn(now, partial(sent, x=start), (d, known, kept))
            due = now if delay == 1 else whose(step)
            z, outer_states, x = in_turn(due, partial(applied, d=d), (z, outer_states, x))
            under_way = d if under_way else []
        else:
            rooms = z, outer_states, x, known, kept
            z, outer_states, x, known, kept = in_turn(whose(step), at_once, rooms)
        local = jax.tree.unflatten(structure, x), inner_state, kept
        return State(step, (z, outer_states, under_way, known), local)

    def means_before(p: int, applied_at: Any) -> Any:
        """How often fragment p was sent before what is applied at this step of its turn."""
        return (applied_at // turn - 1) // count - int((p + 1) * turn <= delay)

    def sends(params: Params, step: int) -> int:
        applied_at = step + early
        if applied_at % turn or applied_at <= delay:
            return 0
        p = (applied_at // turn - 1) % count
        leaves, own = jax.tree.leaves(params), _groups(params, fragments)[p]
        wide = jax.eval_shape(lambda z: _displacements(z, z, own), leaves)
        return how.bytes(wide, means_before(p, applied_at))

    everyone = waiting.everyone(period=turn, ahead=early - 1)

    def meeting(step: int, workers: int) -> waiting.Meeting | None:
        return everyone.meeting(step, workers) if step + early > delay else None

    def readout(state: State) -> Params:
        return jax.tree.unflatten(jax.tree.structure(state.local[0]), state.shared[0])

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=readout,
        sends=sends,
        resize=remade(
            lambda old, fresh: (
                *averaged(old[:2], fresh[:2]),
                [residuals(own, new) for own, new in zip(old[2], fresh[2], strict=True)],
            ),
            AVERAGED.says,
        ),
        waits=waiting.Waits(meeting, period, start=1, overlaps=delay > 0),
        branches=Branches(count + 1, sending) if delay else None,
    )


def _groups(params: Params, fragments: int | PyTree) -> list[list[int]]:
    """Which leaves, in the order of `jax.tree.leaves`, make up each fragment."""
    leaves, structure = jax.tree.flatten(params)
    if isinstance(fragments, int):
        if fragments > len(leaves):
            raise Refused(
                f"fragments={fragments} of parameters with {len(leaves)} leaves: a fragment would be "
                f"empty; write fragments={len(leaves)} or fewer"
            )
        return [list(range(p, len(leaves), fragments)) for p in range(fragments)]
    labels, labelled = jax.tree.flatten(fragments)
    if labelled != structure:
        raise Refused(
            f"fragments has the structure {labelled}, the parameters have {structure}; write one label "
            "for each leaf: jax.tree.map(lambda x: label, params)"
        )
    return [[i for i, own in enumerate(labels) if own == label] for label in sorted(set(labels))]


def _displacements(z: list[jax.Array], x: list[jax.Array], which: list[int]) -> list[jax.Array]:
    return [displacement(z[i], x[i]) for i in which]


def _take(values: list[Any], which: list[int]) -> list[Any]:
    return [values[i] for i in which]


def _put(values: list[Any], which: list[int], new: list[Any]) -> list[Any]:
    """The same list with other values at some places."""
    found = dict(zip(which, new, strict=True))
    return [found.get(i, value) for i, value in enumerate(values)]


def _blended(z: jax.Array, x: jax.Array, blend: float) -> jax.Array:
    """(1 - blend) z + blend x in at least float32; exactly z where nothing is blended."""
    z = worker.vary(z)
    if not blend:
        return z
    wide = worker.accumulation_dtype(z.dtype)
    return ((1 - blend) * z.astype(wide) + blend * x.astype(wide)).astype(z.dtype)

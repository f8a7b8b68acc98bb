"""What can be known to be wrong before anything is compiled: one line each, with the cure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdist import keys, worker
from jaxdist.algorithms.base import Algorithm, Params, State, check_real
from jaxdist.errors import Refused

PyTree = Any


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_count(name: str, value: Any) -> None:
    """Refuses what is not a positive integer."""
    if not is_count(value):
        raise Refused(f"{name}={value!r} is not a positive integer; write for example {name}=2")


def check_metrics(metrics: Any) -> None:
    """Refuses what says neither of whom metrics are."""
    if metrics not in ("mean", "workers"):
        raise Refused(
            f'metrics={metrics!r}: expected "mean" over workers, or "workers" for those of each; '
            'write metrics="mean"'
        )


def check_algorithm(algorithm: Any) -> None:
    """Refuses what is not an Algorithm, an optax rule above all."""
    if isinstance(algorithm, Algorithm):
        return
    if hasattr(algorithm, "init") and hasattr(algorithm, "update"):
        raise Refused(
            "jd.execute was given an optax rule, which does not say how workers agree; "
            "write jd.execute(jd.all_reduce(rule), loss_fn, workers=...)"
        )
    raise Refused(
        f"jd.execute was given {algorithm!r}, which is not a jaxdist Algorithm; "
        "write for example jd.all_reduce(optax.sgd(0.1))"
    )


def check_clock(clock: Any, network: Any, workers: Any) -> None:
    """Refuses a network without a clock, and a clock for other workers than there are."""
    if clock is None and network is not None:
        raise Refused(
            f"network={network!r} times messages only beside gradients; "
            "write clock=jd.clock.constant(workers, seconds=...) as well"
        )
    if clock is not None and getattr(clock, "size", workers) != workers:
        raise Refused(
            f"clock={clock!r} is for {clock.size} workers and the run has {workers}; give a clock of "
            f"{workers}, or workers={clock.size} to jd.execute"
        )


def as_params(params: Params) -> Params:
    """Parameters as JAX arrays; refuses leaves that are not numbers, and an empty pytree."""

    def of(path: Any, x: Any) -> jax.Array:
        try:
            array = jnp.asarray(x)
        except (TypeError, ValueError) as error:
            raise Refused(
                f"the parameter params{jax.tree_util.keystr(path)} is {type(x).__name__} {x!r}, not an "
                "array of numbers; give init only what is to be trained"
            ) from error
        return jax.lax.convert_element_type(array, array.dtype)  # drops a Python scalar's weak type

    if not jax.tree.leaves(params):
        raise Refused(
            f"params={params!r} holds no arrays; give trainer.init the parameters of the model"
        )
    arrays = jax.tree_util.tree_map_with_path(of, params)
    check_real(arrays)
    return arrays


def check_alive(state: PyTree) -> None:
    """Refuses a state whose arrays were donated: stepped again it would end the process without a word."""
    leaves = jax.tree.leaves(state)
    if any(isinstance(x, jax.Array) and _deleted(x) for x in leaves):
        raise Refused(
            "this state was given to trainer.step before, which donates it: its arrays are deleted; go on "
            "from what step returned, state, metrics = trainer.step(state, batch), and to keep one write "
            "jax.tree.map(jnp.copy, state) before"
        )


def of_living(function: Callable[[State], PyTree]) -> Callable[[State], PyTree]:
    """The same function of a state, which refuses one whose arrays are deleted."""

    def checked(state: State) -> PyTree:
        check_alive(state)
        return function(state)

    return checked


def _deleted(x: jax.Array) -> bool:
    return not isinstance(x, Tracer) and x.is_deleted()


def check_batch(batch: PyTree, *, workers: int, leading: int) -> None:
    """Refuses a batch whose leaves do not all lead with the workers (after the steps, if any)."""
    axes = "[steps, workers, ...]" if leading else "[workers, ...]"
    found = jax.tree_util.tree_flatten_with_path(batch)[0]
    if not found:
        raise Refused(f"the batch {batch!r} holds no arrays; give leaves {axes}")
    for path, x in found:
        shape = np.shape(x)
        name = f"batch{jax.tree_util.keystr(path)}"
        if len(shape) <= leading or shape[leading] != workers:
            raise Refused(
                f"{name} has shape {shape}, but its leading axes must be {axes} with {workers} workers; "
                f"reshape the examples to {(*shape[:leading], workers, -1)}"
            )
    if leading and len({np.shape(x)[0] for _, x in found}) > 1:
        raise Refused(
            f"the leaves of the batches have different numbers of steps: "
            f"{sorted({np.shape(x)[0] for _, x in found})}; stack every leaf to {axes}"
        )


def check_loss(loss_fn: Callable[..., Any], point: Params, batch: PyTree) -> dict[str, Any]:
    """Traces the loss of one worker by itself, without any axis to communicate over.

    Args:
      loss_fn: the user's loss.
      point: shapes of the parameters.
      batch: shapes of one worker's batch.

    Returns:
      The shapes of its aux.
    """
    name = getattr(loss_fn, "__name__", "loss_fn")
    key = jax.eval_shape(lambda: keys.key(0))
    try:
        with worker.silence():
            result = jax.eval_shape(loss_fn, point, batch, key)
    except NameError as error:
        if not worker.is_unbound(error):
            raise
        raise Refused(
            f"{name} communicates over the axis {worker.AXIS!r}, but a worker's loss is its own; leave "
            "averaging to the algorithm, and return what is to be reported in aux"
        ) from error
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not isinstance(result[1], dict):
        raise Refused(
            f"{name} returned {_shapes(result)}, expected a scalar loss and a dict; "
            "write return loss, {}"
        )
    loss, aux = result
    if loss is None or getattr(loss, "shape", None) != () or not _floating(loss):
        raise Refused(
            f"{name} returned a loss of {_shapes(loss)}, expected one floating-point number, shape (); "
            "write for example return jnp.mean(losses), {}"
        )
    if "loss" in aux:
        raise Refused(
            f"the aux of {name} holds a key 'loss', which is taken by the loss itself; rename it"
        )
    return aux


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _shapes(tree: Any) -> str:
    shown = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
    return str(shown).replace("'", "")

"""The contract: an algorithm is four pure functions over a State with two rooms."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import keys, worker
from jaxdist.errors import Refused
from jaxdist.waiting import Waits

PyTree = Any
Params = Any

# Keys of update are folded with a number that is no worker's index: nobody's loss has this key.
UPDATE = np.uint32(2**32 - 1)


class State(NamedTuple):
    """What a run knows after a step. How `shared` and `local` are built is each algorithm's own.

    Attributes:
      step: int32, shape (): how many steps were taken, the same for every worker.
      shared: what all workers agree on, one copy.
      local: what each worker keeps to itself; a leading worker axis outside the step.
    """

    step: jax.Array
    shared: PyTree
    local: PyTree


class Resize(NamedTuple):
    """What becomes of a state when the number of workers changes.

    Attributes:
      rule: `rule(state, fresh)` -> the `State` to go on with. Both are whole: leaves of `local` are
        `[workers, ...]`, NumPy arrays (or keys). `fresh` is the start of the new workers at the old
        ones' readout; the result has its shapes.
      says: the rule in a line, for logs.
    """

    rule: Callable[[State, State], State]
    says: str


class Branches(NamedTuple):
    """The kinds of steps of a method that does not send the same at every step.

    Attributes:
      kinds: how many there are.
      which: `which(step)` -> the kind of the step after so many, an int32 below `kinds` made of the
        shared step alone.
    """

    kinds: int
    which: Callable[[jax.Array], jax.Array]


class Algorithm(NamedTuple):
    """How workers compute, communicate and agree. Everything is written for one worker.

    Attributes:
      init: parameters -> `State`; every worker starts at the same parameters.
      gradient_at: `State` -> the parameters at which this worker's next gradient is taken. From the
        state alone, with no communication.
      update: `update(grads, state, *, key, value, objective)` -> the next `State`. `grads` are this
        worker's own; `key` is the same for every worker (fold in `worker.index()` for a private
        one); `value` is this worker's loss; `objective(params)` is this worker's loss as a function.
      readout: `State` -> the parameters to evaluate and deploy, the same for every worker.
      active: `State` -> whether this worker delivers a gradient at this step; None: always. Where it
        does not, `grads` are zeros.
      sends: `sends(params, step)` -> the bytes that one worker hands to the network at that step
        (the operands of its collectives), from the shapes of the parameters alone; `worker.count()` is
        at hand. None: not declared. Read it with `bytes_sent`.
      report: `State` -> a dict of arrays to be recorded after a step beside the loss (staleness,
        simulated seconds), the same for every worker: from the shared room, without communication.
      waits: whom a worker waits for at the end of a step, for example `waiting.everyone()`: what
        `jd.timed` makes simulated seconds of. None: not declared, or the method has a clock itself.
      resize: the rule by which `jd.resize` goes on with another number of workers; None: only the
        parameters survive.
      branches: the kinds of its steps, where a message of some of them waits for no gradient. `update`
        then also takes `branch`, the kind of this step as a plain number, or None: it is to find out
        from the step. `jd.execute(..., overlap=True)` makes use of it.
      method: its name, where it is not that of the function that `update` was written in: of several
        methods that share one, and of a method inside another. Read it with `method_of`.
      alive: `State` -> who takes part in this step, bool `[workers]`, the same for every worker; None:
        everybody. Set by `jd.faulty`.
    """

    init: Callable[[Params], State]
    gradient_at: Callable[[State], Params]
    update: Callable[..., State]
    readout: Callable[[State], Params]
    active: Callable[[State], jax.Array] | None = None
    sends: Callable[[Params, int], int] | None = None
    report: Callable[[State], dict[str, Any]] | None = None
    waits: Waits | None = None
    resize: Resize | None = None
    branches: Branches | None = None
    method: str = ""
    alive: Callable[[State], jax.Array] | None = None


def method_of(algorithm: Algorithm) -> str:
    """The name of a method, whatever its arguments are.

    >>> import jaxdist as jd, optax
    >>> ring = jd.gossip(optax.sgd(0.1), jd.topology.ring(4))
    >>> method_of(ring), method_of(jd.faulty(ring, jd.faults.link_loss(0.1, seed=0)))
    ('gossip', 'gossip')
    """
    if algorithm.method:
        return algorithm.method
    update = algorithm.update
    while isinstance(update, functools.partial):
        update = update.func
    name = getattr(update, "__qualname__", type(update).__qualname__)
    outside = name.rpartition(".<locals>.")[0] or name
    return outside.replace("<locals>.", "")


def check_real(params: Params) -> None:
    """Refuses complex parameters, down whose imaginary part JAX's gradient does not point."""
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise Refused(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(x)}: expected real parameters, for "
                "JAX's gradient of a complex one points up its imaginary part; keep two real leaves, and "
                "in the loss write jax.lax.complex(params['real'], params['imag'])"
            )


def size_bytes(params: Params) -> int:
    """How many bytes the arrays of a pytree hold.

    >>> size_bytes({"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)})
    64
    """
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(params))


def widest(tree: PyTree) -> Any:
    """The dtype that holds all leaves, float32 at least.

    >>> widest({"w": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(3, jnp.float16)})
    dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):  # the answer is about dtypes, not a silent cast
        return jnp.result_type(*(worker.accumulation_dtype(x.dtype) for x in jax.tree.leaves(tree)))


def bytes_sent(algorithm: Algorithm, params: Params, step: int, *, workers: int) -> int:
    """What one worker hands to the network at a step, 0 where the method does not declare it."""
    if algorithm.sends is None:
        return 0
    with worker.counted(workers):
        return algorithm.sends(params, step)


def local_init(inner: optax.GradientTransformation, params: Params) -> PyTree:
    """The state of a rule that every worker runs for itself.

    Random keys in it (added noise, differential privacy) are folded with the worker's index: without
    that every worker would draw the same noise.

    Raises:
      Refused: a key of a generator whose draws depend on how workers are laid on devices.
    """

    def own(x: Any) -> Any:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            check_key("the inner rule", x)
            drawn = worker.vary(x)
            flat = jax.vmap(lambda key: jax.random.fold_in(key, worker.index()))(drawn.ravel())
            return flat.reshape(drawn.shape)
        return worker.vary(x)

    return jax.tree.map(own, inner.init(params))


def check_key(name: str, key: jax.Array) -> None:
    """Refuses a random key whose draws depend on how workers are laid on devices."""
    if keys.follows_layout(key):
        raise Refused(
            f"{name} holds a random key of {jax.random.key_impl(key)!r}, which draws other numbers on other "
            f"devices; give it jax.random.key(seed, impl={keys.IMPL!r})"
        )


def updates(
    inner: optax.GradientTransformation,
    grads: PyTree,
    inner_state: PyTree,
    params: Params,
    *,
    value: jax.Array | None = None,
    objective: Callable[[Params], jax.Array] | None = None,
) -> tuple[PyTree, PyTree]:
    """What an optax rule would add to the parameters, and the new state of the rule.

    The loss and, for rules with a line search, the loss as a function are offered to rules that ask
    for them.
    """
    return optax.with_extra_args_support(inner).update(
        grads, inner_state, params, value=value, grad=grads, value_fn=objective
    )


def apply(
    inner: optax.GradientTransformation,
    grads: PyTree,
    inner_state: PyTree,
    params: Params,
    *,
    value: jax.Array | None = None,
    objective: Callable[[Params], jax.Array] | None = None,
) -> tuple[Params, PyTree]:
    """One step of an optax rule: the new parameters and the new state of the rule."""
    u, inner_state = updates(inner, grads, inner_state, params, value=value, objective=objective)
    return optax.apply_updates(params, u), inner_state


def check_rule(name: str, rule: Any) -> None:
    """Refuses what is not an optax rule, before anything is traced."""
    if not (callable(getattr(rule, "init", None)) and callable(getattr(rule, "update", None))):
        raise Refused(
            f"{name}={rule!r} is not an optax.GradientTransformation; write for example optax.sgd(0.1)"
        )


def refuse_others(method: str, others: tuple[Any, ...]) -> None:
    """Refuses further arguments, a topology above all, of a method that has no use for them."""
    if others:
        raise Refused(
            f"jd.{method} was also given {', '.join(map(repr, others))}, which it has no use for: all its "
            "workers average with all others; leave it out, or write jd.gossip(rule, topology)"
        )


def check_period(name: str, value: Any, *, least: int = 1) -> None:
    """Refuses a number of steps that is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Refused(
            f"{name}={value!r} is not a number of steps; write an integer of at least {least}, "
            f"for example {name}={max(least, 8)}"
        )


def check_fraction(name: str, value: Any) -> None:
    """Refuses what is not a number from 0 up to, and not including, 1."""
    if not (isinstance(value, int | float) and 0 <= value < 1):
        raise Refused(
            f"{name}={value!r}: expected a number from 0 up to, and not including, 1; write {name}=0.5"
        )

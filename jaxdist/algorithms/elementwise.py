"""Whether a rule treats every number by itself, and a part as it treats the whole, read off its program.

Nothing is computed: the jaxprs of the rule's `init` and `update` are read, once for the parameters as
they are and once for one worker's part of them. Of every array in between it is known which leaf's own
number each of its numbers is made of, and what is computed, shapes left aside. A rule that mixes numbers
anywhere is found whatever their size, and so is one that looks at shapes: it is another program for a part.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Literal

from jaxdist.errors import Refused

PyTree = Any
Term = int
# Names an expression: the same number for the same one.
Named = Callable[..., Term]

OPERATIONS = """
    abs add add_any and cbrt ceil clamp convert_element_type copy copy_p div eq exp exp2 expm1 floor
    ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow rem
    round rsqrt select_n sign sqrt square sub tanh xor acos acosh asin asinh atan atan2 atanh cos
    cosh sin sinh tan complex conj digamma erf erf_inv erfc imag lgamma real reduce_precision
"""
ELEMENTWISE = frozenset(OPERATIONS.split())
# What these make of equal numbers is equal numbers; the first two leave an array of that shape as it is.
MOVES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "rev")
STILL = MOVES[:2]
CALLS = ("jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
CALLED = ("jaxpr", "call_jaxpr")
# What a rule raises that is given another tree than it was made for.
UNFIT = (TypeError, ValueError, KeyError, AttributeError, IndexError)
SHAPES = ("shape", "broadcast_dimensions", "sharding", "out_sharding", "weak_type")


class Numbers(NamedTuple):
    """What is known of the numbers of an array.

    Attributes:
      term: what is computed.
      leaf: made of this leaf's number at the same place, and of what all workers know; None: of the
        latter only.
      uneven: they may differ from each other, as those of no leaf need not.
      mixed: what made them depend on more than that; empty: nothing.
    """

    term: Term
    leaf: int | None = None
    uneven: bool = False
    mixed: str = ""


class Program(NamedTuple):
    """A rule for parameters of certain shapes.

    Attributes:
      shapes: of the leaves.
      dtypes: likewise.
      init: leaves -> the leaves of its memory.
      update: gradients, memory, parameters, what else it gets -> updates, memory.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    init: ClosedJaxpr
    update: ClosedJaxpr


def check_elementwise(
    inner: optax.GradientTransformation,
    like: PyTree = None,
    part: PyTree = None,
    *,
    of: Sequence[int] = (0,),
    where: str,
    instead: str,
    **given: Any,
) -> None:
    """Refuses a rule for which an array is more than its parts.

    A share knows nothing of the others: a norm, a trust ratio or a line search over it is not that
    over the parameters. Nor does it have their shape: what a rule does to matrices it does not do to
    flat shares of them. And one number that is not finite has to stay the only one.

    Args:
      inner: the rule.
      like: arrays or shapes of the parameters. None: not known yet, a vector; a rule that can not be run
        on one is let through.
      part: shapes of what one worker runs the rule on.
      of: for every leaf of `like`, which leaf of `part` holds a part of it.
      where: who runs the rule on parts, for the message.
      instead: what to write in place of it, likewise.
      given: further arguments that the rule gets, the same on every worker.

    Raises:
      Refused: a part may move in another way than the whole; says by what.
    """
    unknown = like is None
    if unknown:
        like, part = ([jax.ShapeDtypeStruct((n,), jnp.float32)] for n in (4, 2))
    with jax.numpy_dtype_promotion("standard"):
        try:
            whole = _program(inner, like, given)
        except UNFIT as error:
            if unknown:
                return
            # A line search asks for the loss and the gradient.
            if "required keyword-only arg" in str(error):
                raise _refused(str(error), where, instead) from error
            raise
        try:
            parts = _program(inner, part, given)
        except UNFIT as error:
            found = f"it needs their structure ({' '.join(str(error).split())[:100]})"
            raise _refused(found, where, instead) from error
    moves, own = _updates([whole, parts])
    for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(like)):
        leaf = f"params{jax.tree_util.keystr(path)}, {whole.dtypes[i]}{list(whole.shapes[i])},"
        there = own[of[i]]
        if mixed := moves[i].mixed or there.mixed:
            found = f"in {leaf} a number's update depends on others ({mixed})"
            raise _refused(found, where, instead)
        if moves[i].term != there.term or moves[i].uneven or there.uneven:
            found = f"it does something else with {leaf} than with a flat part of it"
            raise _refused(found, where, instead)


def _refused(found: str, where: str, instead: str) -> Refused:
    return Refused(
        f"{where} runs inner on every worker's share of the parameters by itself, and this rule needs "
        f"to see all of them: {found}; write an elementwise rule, for example optax.adam(0.1), with "
        f"optax.clip in place of a norm, or {instead}"
    )


def _program(inner: optax.GradientTransformation, like: PyTree, given: dict[str, Any]) -> Program:
    rule = optax.with_extra_args_support(inner)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)

    def update(g, state, x, given):
        return rule.update(g, state, x, **given)

    state = jax.eval_shape(rule.init, like)
    leaves = jax.tree.leaves(like)
    return Program(
        tuple(x.shape for x in leaves),
        tuple(x.dtype for x in leaves),
        jax.make_jaxpr(rule.init)(like),
        jax.make_jaxpr(update)(like, state, like, given),
    )


def _updates(programs: Sequence[Program]) -> list[list[Numbers]]:
    """The updates that each makes, with one name for what is the same in all.

    What two of them remember is the same if it begins so and, as long as it is, goes on so: all that
    begins alike is taken for the same, and told apart where the next step does, until no step does.
    """
    terms: dict[tuple[Any, ...], Term] = {}

    def named(*what: Any) -> Term:
        return terms.setdefault(what, len(terms))

    def own(program: Program, name: str) -> list[Numbers]:
        return [Numbers(named(name, x), leaf) for leaf, x in enumerate(program.dtypes)]

    memories = [_read(p.init, own(p, "x"), p.shapes, named) for p in programs]
    while True:
        ends, after = [], []
        for program, memory in zip(programs, memories, strict=True):
            known = [one._replace(term=named("memory", one.term)) for one in memory]
            g, x = own(program, "g"), own(program, "x")
            count = len(program.update.jaxpr.invars) - len(g) - len(known) - len(x)
            given = [Numbers(named("given", i)) for i in range(count)]
            out = _read(program.update, [*g, *known, *x, *given], program.shapes, named)
            ends.append(out[: len(g)])
            both = zip(memory, out[len(g) :], strict=True)
            after.append([_joined([old, now], named, "and then") for old, now in both])
        if _told_apart(after) == _told_apart(memories):
            return ends
        memories = after


def _told_apart(memories: list[list[Numbers]]) -> tuple[int, list[Any]]:
    """How many different things are remembered, and what is known of each but its name."""
    every = [one for memory in memories for one in memory]
    return len({one.term for one in every}), [(x.leaf, x.uneven, bool(x.mixed)) for x in every]


def _joined(ones: Sequence[Numbers], named: Named, *how: Any) -> Numbers:
    """What one of them decides, or is followed by, or is chosen between."""
    term = named(*how, *[one.term for one in ones])
    leaves = {one.leaf for one in ones} - {None}
    mixed = next((one.mixed for one in ones if one.mixed), "")
    uneven = any(one.uneven for one in ones)
    if len(leaves) > 1 or (leaves and uneven):
        mixed = mixed or "what has no place in a part"
    return Numbers(term, next(iter(leaves), None), uneven, mixed)


def _read(
    program: ClosedJaxpr,
    given: Sequence[Numbers],
    shapes: Sequence[tuple[int, ...]],
    named: Named,
) -> list[Numbers]:
    """What is known of what a program returns, from what is known of its arguments."""
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, (_constant(x, named) for x in program.consts), strict=True))
    known |= dict(zip(jaxpr.invars, given, strict=True))

    def of(atom: Any) -> Numbers:
        return _constant(atom.val, named) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        made = _made(eqn, [of(atom) for atom in eqn.invars], shapes, named)
        known |= dict(zip(eqn.outvars, made, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _constant(value: Any, named: Named) -> Numbers:
    if _is_key(jnp.result_type(value)):
        return Numbers(named("key"), mixed="noise")
    array = np.asarray(value)
    bits = array.tobytes()
    one = bits[: array.itemsize]
    if bits == one * max(array.size, 1):
        return Numbers(named("constant", array.dtype, one))
    return Numbers(named("array", array.dtype, array.shape, bits), uneven=True)


def _is_key(dtype: Any) -> bool:
    """Whether it is a key's: whatever is drawn by it is another number at every place, and worker."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _made(
    eqn: Any, given: list[Numbers], shapes: Sequence[tuple[int, ...]], named: Named
) -> list[Numbers]:
    """What is known of what one operation returns."""
    name, outs = eqn.primitive.name, [x.aval for x in eqn.outvars]
    if name == "cond":
        return _branched(eqn, given, shapes, named)
    if name in CALLS:
        inside = next(eqn.params[param] for param in CALLED if param in eqn.params)
        closed = inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())
        return _read(closed, given, shapes, named)
    if name == "convert_element_type" and outs[0].dtype == eqn.invars[0].aval.dtype:
        return given
    if any(_is_key(x.dtype) for x in outs):
        return [Numbers(named("key"), mixed="noise") for _ in outs]
    params = [(k, str(v)) for k, v in sorted(eqn.params.items()) if k not in SHAPES]
    ones = _joined(given, named, name, *params, *[x.dtype for x in outs])
    still = name in STILL and not ones.uneven and eqn.params.get("dimensions") is None
    if name in ELEMENTWISE or still:
        # Of a leaf that is one number the others are not made: its shape is left.
        if ones.leaf is not None and outs[0].shape != shapes[ones.leaf]:
            ones = ones._replace(mixed=ones.mixed or name)
        return [ones._replace(term=given[0].term) if still else ones]
    if ones.leaf is not None:
        return [ones._replace(mixed=ones.mixed or name) for _ in outs]
    if name in MOVES and not ones.uneven:
        return [ones._replace(term=given[0].term)]
    # Of what all workers know, all make the same: where the shapes are the same.
    shapes_too = str([eqn.params, *[atom.aval for atom in eqn.invars]])
    return [
        ones._replace(term=named(ones.term, shapes_too, i), uneven=bool(x.shape))
        for i, x in enumerate(outs)
    ]


def _branched(
    eqn: Any, given: list[Numbers], shapes: Sequence[tuple[int, ...]], named: Named
) -> list[Numbers]:
    which, *rest = given
    ends = [_read(branch, rest, shapes, named) for branch in eqn.params["branches"]]
    made = [_joined([which, *ones], named, "cond", len(ones)) for ones in zip(*ends, strict=True)]
    if which.leaf is not None:
        made = [one._replace(mixed=one.mixed or "cond") for one in made]
    return made

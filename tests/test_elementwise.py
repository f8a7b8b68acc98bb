"""A rule runs on shares only if that changes nothing: optax's rules are exact there, or refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd
from jaxdist.algorithms import shares
from jaxdist.algorithms.elementwise import check_elementwise

W = 4
LR = 0.05
# A number, a vector and a square matrix whose sizes W does not divide, and one that is divided.
SHAPES = {"s": (), "t": (3, 2, 4), "v": (7,), "w": (5, 5)}
CLOCK = jd.clock.speeds([1.0, 0.5, 0.7, 0.3])


def by(test):
    return lambda tree: jax.tree.map(test, tree)


def by_path(tree):
    return jax.tree_util.tree_map_with_path(lambda path, x: "w" in str(path[-1]), tree)


LABELS = {"s": "a", "t": "b", "v": "b", "w": "a"}
CHOSEN = {name: label == "a" for name, label in LABELS.items()}
S = optax.schedules


def words(text):
    return text.split()


FACTORIES = words("""
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lbfgs lion
    nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam
    rmsprop rprop sgd sign_sgd signum yogi""")
CONTRIB = words("""
    acprop ademamix adopt cocob dadapt_adamw dog dowg galore madgrad momo momo_adam muon prodigy
    schedule_free_adamw schedule_free_sgd simplified_ademamix""")
PARTS = words("""
    scale_by_adadelta scale_by_adan scale_by_factored_rms scale_by_lbfgs
    scale_by_novograd scale_by_param_block_norm scale_by_param_block_rms scale_by_rms scale_by_rss
    scale_by_sign scale_by_stddev scale_by_trust_ratio""")


def then(*rules):
    return optax.chain(*rules, optax.sgd(LR))


def per_leaf(function):
    return optax.stateless(lambda g, x: jax.tree.map(lambda a: -LR * function(a), g))


RULES = {
    **{name: lambda name=name: getattr(optax, name)(LR) for name in FACTORIES},
    **{name: lambda name=name: getattr(optax.contrib, name)(LR) for name in CONTRIB},
    **{name: lambda name=name: then(getattr(optax, name)()) for name in PARTS},
    "noisy_sgd": lambda: optax.noisy_sgd(LR, key=0),
    "add_noise": lambda: then(optax.add_noise(0.1, 0.0, key=0)),
    "mechanize": lambda: optax.contrib.mechanize(optax.adam(LR)),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.adam(LR), LR, b1=0.9),
    "normalize": lambda: then(optax.contrib.normalize()),
    "factored": lambda: then(optax.scale_by_factored_rms(min_dim_size_to_factor=4)),
    "weight decay by ndim": lambda: optax.adamw(
        LR, weight_decay=3e-5, mask=by(lambda x: x.ndim > 1)
    ),
    "weight decay by size": lambda: optax.adamw(
        LR, weight_decay=3e-5, mask=by(lambda x: x.size > 9)
    ),
    "tiny decay by ndim": lambda: then(optax.add_decayed_weights(1e-12, by(lambda x: x.ndim > 1))),
    "weight decay by path": lambda: optax.adamw(LR, weight_decay=0.1, mask=by_path),
    "weight decay by tree": lambda: optax.adamw(LR, weight_decay=0.1, mask=CHOSEN),
    "masked by ndim": lambda: optax.masked(optax.adam(LR), by(lambda x: x.ndim > 1)),
    "masked by path": lambda: then(optax.masked(optax.scale(2.0), by_path)),
    "partition by ndim": lambda: optax.partition(
        {True: optax.adam(LR), False: optax.sgd(LR)}, by(lambda x: x.ndim > 1)
    ),
    "partition": lambda: optax.partition({"a": optax.adam(LR), "b": optax.sgd(LR)}, LABELS),
    "frozen": lambda: optax.partition({"a": optax.adam(LR), "b": optax.set_to_zero()}, LABELS),
    "global norm": lambda: then(optax.clip_by_global_norm(1.0)),
    "huge global norm": lambda: then(optax.clip_by_global_norm(1e30)),
    "huge block rms": lambda: then(optax.clip_by_block_rms(1e30)),
    "huge adaptive clip": lambda: then(optax.adaptive_grad_clip(1e30)),
    "clip": lambda: then(optax.clip(0.01)),
    "centralize": lambda: then(optax.centralize()),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(LR), 3),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(LR), lambda n: jnp.where(n < 3, 1, 2)),
    "MultiSteps that skips": lambda: optax.MultiSteps(
        optax.adam(LR), 3, should_skip_update_fn=optax.skip_not_finite
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(S.linear_schedule(0.1, 0, 30)),
    "injected norm": lambda: optax.inject_hyperparams(
        lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))
    )(rate=LR),
    "warm-up and cosine": lambda: optax.lion(S.warmup_cosine_decay_schedule(0.0, 0.1, 5, 30)),
    "pieces": lambda: optax.sgd(S.piecewise_interpolate_schedule("linear", 0.1, {5: 0.5, 9: 0.1})),
    "one cycle": lambda: optax.sgd(S.linear_onecycle_schedule(30, 0.1)),
    "joined": lambda: optax.sgd(
        S.join_schedules([S.constant_schedule(0.1), S.exponential_decay(0.1, 5, 0.9)], [7])
    ),
    "nesterov": lambda: optax.sgd(LR, 0.9, nesterov=True),
    "average": lambda: then(optax.ema(0.9)),
    "every third": lambda: then(optax.apply_every(3)),
    "flattened": lambda: optax.flatten(optax.adam(LR)),
    "without NaN": lambda: then(optax.zero_nans()),
    "nonnegative": lambda: optax.chain(optax.sgd(LR), optax.keep_params_nonnegative()),
    "normalized": lambda: then(optax.normalize_by_update_norm()),
    "for some steps": lambda: optax.conditionally_mask(optax.adam(LR), lambda step: step < 5),
    "low precision": lambda: optax.adam(LR, mu_dtype=jnp.bfloat16),
    "over the size": lambda: per_leaf(lambda a: a / a.size),
    "over the rank": lambda: per_leaf(lambda a: a / (1 + a.ndim)),
    "more if large": lambda: per_leaf(lambda a: a * (2.0 if a.size > 24 else 1.0)),
    "transposed": lambda: per_leaf(lambda a: a.T if a.shape == (5, 5) else a),
    "reversed": lambda: per_leaf(lambda a: jnp.flip(a)),
    "sorted": lambda: per_leaf(lambda a: jnp.sort(a.ravel()).reshape(a.shape)),
    "by place": lambda: per_leaf(lambda a: a * jnp.arange(a.size).reshape(a.shape)),
    "by the first": lambda: per_leaf(lambda a: jnp.where(jnp.isnan(a.ravel()[0]), 0.0, a)),
    "by another leaf": lambda: optax.stateless(
        lambda g, x: jax.tree.map(lambda a: a * jax.tree.leaves(g)[0].ravel()[0], g)
    ),
}
# One of each way in which a part may differ from the whole; the others take the same ways.
FIRST = (
    "adam",
    "lamb",
    "muon",
    "weight decay by ndim",
    "tiny decay by ndim",
    "one cycle",
    "partition",
)
BOTH = pytest.mark.parametrize("placed", ["server", "all_reduce"])


def numbers(draw, tree_of=SHAPES):
    """Numbers of all sizes."""
    return {k: 10.0 ** draw.uniform(-6, 6, s) * draw.choice([-1, 1], s) for k, s in tree_of.items()}


def cut(tree, placed):
    """What each worker runs the rule on, with a leading worker axis, and which leaf holds which."""
    if placed == "server":
        return shares.split(tree, W), [0] * len(SHAPES)
    return shares.rows(tree, W), range(len(SHAPES))


def glued(tree, like, placed):
    return shares.join(tree, like) if placed == "server" else shares.unrows(tree, like)


def moved(rule, x, gradients):
    """Where a rule takes parameters."""
    rule = optax.with_extra_args_support(rule)
    state = rule.init(x)

    def step(carry, g):
        x, state = carry
        u, state = rule.update(g, state, x, value=jnp.float64(1))
        return (optax.apply_updates(x, u), state), None

    return jax.jit(lambda x, s, g: jax.lax.scan(step, (x, s), g)[0][0])(x, state, gradients)


@BOTH
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.slow) for n in RULES]
)
def test_on_shares_a_rule_of_optax_is_exact_or_refused(x64, standard_promotion, name, placed):
    draw = np.random.default_rng(0)
    x = jax.tree.map(jnp.asarray, numbers(draw))
    gradients = [numbers(draw) for _ in range(30)]
    rows, of = cut(x, placed)
    part = jax.eval_shape(lambda rows: jax.tree.map(lambda r: r[0], rows), rows)
    try:
        check_elementwise(
            RULES[name](), x, part, of=of, where="here", instead="there", value=jnp.zeros(())
        )
    except jd.Refused:
        return
    whole = moved(RULES[name](), x, jax.tree.map(lambda *g: jnp.stack(g), *gradients))
    own = [
        moved(
            RULES[name](),
            jax.tree.map(lambda r, i=i: r[i], rows),
            jax.tree.map(
                lambda *g, i=i: jnp.stack(g)[:, i], *[cut(g, placed)[0] for g in gradients]
            ),
        )
        for i in range(W)
    ]
    together = glued(jax.tree.map(lambda *r: jnp.stack(r), *own), x, placed)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-300)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (whole, x)), strict=True))


EXACT = ("adam", "lion", "sgd", "adamw", "without NaN", "one cycle", "MultiSteps", "schedule_free")


@pytest.mark.parametrize("name", EXACT)
def test_elementwise_rules_are_not_refused(standard_promotion, name):
    rule = RULES[name] if name in RULES else lambda: getattr(optax, name)(LR)
    whole = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
    part = [jax.ShapeDtypeStruct((15,), jnp.float32)]
    check_elementwise(rule(), whole, part, of=[0] * 4, where="here", instead="there")


HELD = {
    "muon": (RULES["muon"], "params['w'], float32[5, 5], a number's update depends on others"),
    "a mask by ndim": (
        RULES["weight decay by ndim"],
        "something else with params['t'], float32[3, 2, 4]",
    ),
    "a mask by size": (RULES["weight decay by size"], "something else with params"),
    "a faint decay": (RULES["tiny decay by ndim"], "something else with params['t']"),
    "rows and columns": (lambda: optax.sm3(LR), "depends on others"),
    "factored": (
        RULES["factored"],
        "params['w'], float32[5, 5], a number's update depends on others",
    ),
    "centered": (RULES["centralize"], "params['t'], float32[3, 2, 4], a number's update depends"),
    "labels": (RULES["partition"], "it needs their structure"),
    "the loss": (lambda: optax.polyak_sgd(LR), "missing 1 required keyword-only argument: 'value'"),
}


@pytest.mark.parametrize("name", HELD)
def test_a_sharded_server_refuses_by_name_what_it_would_run_as_another_rule(
    standard_promotion, name
):
    rule, said = HELD[name]
    # A number is no array of rows and columns, and the labels are for all four.
    params = {k: jnp.ones(s) for k, s in SHAPES.items() if s or name == "labels"}
    method = jd.hogwild if name == "muon" else jd.downpour  # they have one server

    def begin():
        algorithm = method(rule(), clock=CLOCK, server="sharded")
        jd.execute(algorithm, total, workers=W).init(params)

    with pytest.raises(jd.Refused, match=re.escape(said)) as refused:
        begin()
    assert "server='replicated'" in str(refused.value)


def total(params, batch, key):
    return sum(map(jnp.sum, jax.tree.leaves(params))), {}

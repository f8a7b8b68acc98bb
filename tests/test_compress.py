"""Every compressor is what it declares: shapes, bytes, bias or contraction; and NaN stays NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdist as jd
from jaxdist.compress import CATALOGUE, base, bits

EVERY = pytest.mark.parametrize("name", CATALOGUE)
DRAWS = 400
SIZES = (1, 7, 24)
ROUNDING = 1 + 1e-5


def row(compressor, x, key=0):
    """What comes back of one array."""
    return jax.jit(lambda k, x: compressor.decode(compressor.encode(k, x), x))(
        jax.random.key(key), x
    )


def many(name):
    """A compiled function: an array -> what comes back for each of many keys, float64."""
    compressor = CATALOGUE[name]()

    @jax.jit
    def draws(x):
        return jax.vmap(lambda key: compressor.decode(compressor.encode(key, x), x))(
            jax.random.split(jax.random.key(1), DRAWS)
        )

    return lambda x: np.asarray(draws(jnp.asarray(x)), np.float64)


COMPILED = {}


def draws_of(name, x):
    if (name, x.size) not in COMPILED:
        COMPILED[name, x.size] = many(name)
    return COMPILED[name, x.size](x)


@st.composite
def arrays(draw):
    """Zeros, one-hot, ordinary, huge and tiny numbers, and all of them mixed."""
    size = draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["zeros", "one-hot", "equal", "normal", "heavy", "mixed"]))
    x = {
        "zeros": np.zeros(size),
        "one-hot": np.eye(size)[rng.integers(size)],
        "equal": np.where(rng.random(size) < 0.5, 1.0, -1.0),
        "normal": rng.normal(size=size),
        "heavy": rng.standard_cauchy(size),
        "mixed": rng.normal(size=size) * 10.0 ** rng.integers(-6, 6, size),
    }[kind]
    return (x * draw(st.sampled_from([1.0, 1e30, 1e-30]))).astype(np.float32)


@EVERY
@settings(max_examples=40)
@given(x=arrays())
def test_it_is_unbiased_or_contracts_as_declared(name, x):
    compressor = CATALOGUE[name]()
    y, x = draws_of(name, x), x.astype(np.float64)
    assert np.isfinite(y).all()
    scale = np.abs(x).max() or 1.0
    x, y = x / scale, y / scale
    errors, energy = ((y - x) ** 2).sum(1), (x**2).sum()
    bound = compressor.error(x.size) * energy
    if not compressor.unbiased:
        assert errors.max() <= bound * ROUNDING
        assert 0 < compressor.delta(x.size) <= 1
        return
    # Five standard deviations of the mean of so many draws; the error itself is that of one draw.
    assert errors.mean() <= bound * ROUNDING + 5 * errors.std() / DRAWS**0.5 + 1e-9
    assert (np.abs(y.mean(0) - x) <= 5 * (bound / DRAWS) ** 0.5 + 1e-6).all()
    # Where errors are remembered it is shrunk, and then it contracts.
    assert base.contractive(compressor).error(x.size) == pytest.approx(1 - compressor.delta(x.size))
    shrunk = ((y / (1 + compressor.error(x.size)) - x) ** 2).sum(1)
    allowed = (1 - compressor.delta(x.size)) * energy
    assert shrunk.mean() <= allowed * ROUNDING + 5 * shrunk.std() / DRAWS**0.5 + 1e-9


@pytest.mark.parametrize("name", [n for n, make in CATALOGUE.items() if make().unbiased])
def test_an_unbiased_one_is_random_where_it_can_not_be_exact(name):
    x = np.random.default_rng(0).normal(size=24).astype(np.float32)
    y = draws_of(name, x)
    assert (y.std(0) > 0).sum() > 12
    assert np.abs(y[0] - x).max() > 1e-3


@EVERY
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (jnp.float32, ()),
        (jnp.bfloat16, (3, 5)),
        (jnp.float16, (1,)),
        (jnp.float64, (2, 3)),
        (jnp.float32, (0,)),
    ],
    ids=str,
)
def test_shape_and_type_come_back_and_the_payload_has_the_declared_bytes(x64, name, dtype, shape):
    compressor = CATALOGUE[name]()
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    payload = jax.jit(compressor.encode)(jax.random.key(0), x)
    y = jax.jit(lambda p: compressor.decode(p, like))(payload)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert compressor.bytes(x) == sum(p.nbytes for p in jax.tree.leaves(payload))
    assert compressor.bytes({"a": x, "b": (x,)}) == 2 * compressor.bytes(x)
    assert np.isfinite(np.asarray(y, np.float64)).all()


@EVERY
@settings(max_examples=15)
@given(x=arrays(), bad=st.sampled_from([np.nan, np.inf, -np.inf]), seed=st.integers(0, 99))
def test_what_is_not_finite_does_not_come_back_finite(name, x, bad, seed):
    where = np.random.default_rng(seed).random(x.size) < 0.3
    where[seed % x.size] = True
    y = draws_of(name, np.where(where, np.float32(bad), x))
    assert not np.isfinite(y[:, where]).any()
    if np.isnan(bad):
        assert np.isnan(y[:, where]).all()


def test_the_largest_finite_numbers_do_not_become_infinite():
    big = np.array([3.4e38, -3.4e38, 1.0], np.float32)
    for name in ("cast to bfloat16", "cast to float16", "cast to float8", "int8", "int4", "sign"):
        y = draws_of(name, big)
        assert np.isfinite(y).all(), name
        assert (y[:, :2] * np.sign(big[:2]) > 1e38).all(), name


def test_bits_are_packed_without_loss():
    draw = np.random.default_rng(0)
    for width in (1, 2, 4):
        for size in (0, 7, 33):
            x = jnp.asarray(draw.integers(0, 2**width, size), jnp.uint8)
            packed = bits.pack(x, bits=width)
            assert packed.size == -(-size * width // 8)
            np.testing.assert_array_equal(bits.unpack(packed, bits=width, size=size), x)


def test_the_rules_by_hand():
    x = jnp.array([3.0, -1.0, 0.0, -4.0, 0.5])
    np.testing.assert_array_equal(row(jd.compress.top_k(0.4), x), [3, 0, 0, -4, 0])
    np.testing.assert_allclose(
        row(jd.compress.sign(), x), 1.7 * np.array([1, -1, 1, -1, 1]), rtol=1e-6
    )
    np.testing.assert_array_equal(row(jd.compress.cast(jnp.bfloat16), x), x)
    np.testing.assert_array_equal(row(jd.compress.int8(1), x), x)  # a scale for every number
    for key in range(3):
        signs = np.asarray(row(jd.compress.ternary(), x, key)) / 4
        assert set(np.abs(signs)) <= {0.0, 1.0}
        assert signs[3] == -1
        levels = np.asarray(row(jd.compress.qsgd(4), x, key)) / np.linalg.norm(x) * 4
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-5)
        sampled = np.asarray(row(jd.compress.random_k(0.4), x + 5, key))
        chosen = sampled != 0
        assert chosen.sum() == 2
        np.testing.assert_allclose(sampled[chosen], 2.5 * np.asarray(x + 5)[chosen], rtol=1e-6)
    flat = jnp.ones((2, 3))  # one frequency a chunk, but for the padded end
    np.testing.assert_allclose(row(jd.compress.dct_top_k(1, chunk=3), flat), flat, rtol=1e-6)


def test_payloads_are_small():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    c = jd.compress
    sizes = {
        c.cast(jnp.bfloat16): 2000, c.cast(jnp.float8_e4m3fn): 1004, c.int8(250): 1016,
        c.int4(100): 540, c.qsgd(127): 1004, c.qsgd(128): 2004, c.ternary(): 254, c.sign(): 129,
        c.top_k(0.01): 60, c.random_k(0.01): 48, c.dct_top_k(1, chunk=100): 50,
    }  # fmt: skip
    for compressor, expected in sizes.items():
        assert compressor.bytes(x) == expected, compressor


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: jd.compress.top_k(0), "top_k needs the share"),
        (lambda: jd.compress.random_k(1.5), "and was given 1.5"),
        (lambda: jd.compress.int8(0), "at least 1"),
        (lambda: jd.compress.qsgd(2.0), "write for example jd.compress.qsgd"),
        (lambda: jd.compress.cast(jnp.int8), "jd.compress.int8()"),
        (lambda: jd.compress.dct_top_k(9, chunk=8), "from 1 to 8"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_line_to_write(make, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        make()

"""Random keys whose draws do not depend on how workers are laid on devices."""

import jax

# Of JAX's generators the one whose draws vmap, shard_map and the partitioner leave alone. "rbg" and
# "unsafe_rbg" draw other numbers in a batch of lanes than on a device each.
IMPL = "threefry2x32"


def key(seed: int) -> jax.Array:
    """A key of `IMPL`, whatever `jax_default_prng_impl` says: one trajectory on any layout.

    >>> with jax.default_prng_impl("rbg"):
    ...     jax.random.key_impl(key(0)) == IMPL
    True
    """
    return jax.random.key(seed, impl=IMPL)


def follows_layout(x: jax.Array) -> bool:
    """Whether a key draws other numbers when workers are laid on devices in another way."""
    return jax.random.key_impl(x) != IMPL

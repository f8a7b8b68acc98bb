"""Bytes a device needs for parameters and optimizer state, and at the peak of a step, by method and mesh.

Read from compiled steps on 8 simulated devices; nothing is run. A multilayer perceptron of 4.2 million
parameters with Adam, 64 examples a device. All sizes are those of `memory_analysis`. State is what a step
gives back in place of what it was given (the donated bytes); its parameters are what is left of it with SGD,
which remembers nothing (of DiLoCo the outer ones as well), and all else is the optimizer's. The peak is
arguments and temporaries together, a bound from above that has the batch, gradients and activations in it
(what XLA itself calls the peak leaves temporaries out on CPU). With a mesh axis "fsdp" the worker's
parameters, its state and its examples are spread over that many devices.

    python benchmarks/sharding.py > docs/sharding.md
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxdist as jd

Rule = optax.GradientTransformation
DEVICES, WIDTH, LAYERS, EXAMPLES = 8, 1024, 4, 64
PARAMETERS = 4 * LAYERS * WIDTH * WIDTH  # bytes


class Setup(NamedTuple):
    """A method and how the devices are split between workers and within one."""

    name: str
    make: Callable[[Rule, int], jd.Algorithm]
    workers: int
    fsdp: int = 1


def gossip(rule: Rule, workers: int) -> jd.Algorithm:
    """On a ring."""
    return jd.gossip(rule, jd.topology.ring(workers))


def diloco(rule: Rule, workers: int) -> jd.Algorithm:
    """A round of eight steps."""
    return jd.diloco(rule, optax.sgd(0.7), period=8)


SETUPS = (
    Setup("all_reduce", lambda rule, W: jd.all_reduce(rule), 8),
    Setup("sharded_all_reduce", lambda rule, W: jd.sharded_all_reduce(rule), 8),
    Setup("gossip, ring", gossip, 8),
    Setup("all_reduce", lambda rule, W: jd.all_reduce(rule), 4, 2),
    Setup("all_reduce", lambda rule, W: jd.all_reduce(rule), 1, 8),
    Setup("gossip, ring", gossip, 4, 2),
    Setup("gossip, ring", gossip, 2, 4),
    Setup("diloco", diloco, 2, 4),
)

CONCLUSION = """
`sharded_all_reduce` splits the optimizer state over the workers and leaves the parameters whole; an axis
`fsdp` splits both, and pays with all-gathers of the parameters in every step. Gossip and DiLoCo have a
model a worker, so that only spreading a worker over devices makes it smaller."""


def loss(params: list[jax.Array], batch: jax.Array, key: jax.Array):
    """Of one worker: the size of what comes out."""
    for w in params:
        batch = jax.nn.relu(batch @ w)
    return jnp.mean(batch**2), {}


def inspect(setup: Setup, rule: Rule) -> tuple[int, int, int]:
    """Bytes of a device: state, the peak of a step, and what leaves it in one."""
    devices = np.array(jax.devices()[:DEVICES]).reshape(setup.workers, setup.fsdp)
    mesh = Mesh(devices, ("worker", "fsdp"))
    trainer = jd.execute(setup.make(rule, setup.workers), loss, workers=setup.workers, mesh=mesh)
    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * LAYERS
    batch = jax.ShapeDtypeStruct((setup.workers, EXAMPLES * setup.fsdp, WIDTH), jnp.float32)
    found = jd.audit.inspect(trainer.lower(params, batch))
    most = max((found.sent(one.branch) for one in found.transfers), default=0)
    return found.alias_bytes, found.argument_bytes + found.temporary_bytes, most


def main() -> None:
    """Prints the page."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print("# What a device holds\n")
    print(
        f"Bytes of one of {DEVICES} devices, as multiples of the parameters ({PARAMETERS >> 20} MiB in "
        "float32), with Adam,\nwhose state is two more of them. What `memory_analysis` says of steps "
        "compiled for simulated CPU devices, by\n`python benchmarks/sharding.py`, which tells "
        "what the columns are; another compiler has other\npeaks: `jaxdist inspect --target`. "
        "Sent is what leaves the device in the dearest step.\n"
    )
    print("| method | workers | fsdp | parameters | optimizer | peak | sent |")
    print("|---|---|---|---|---|---|---|")
    for setup in SETUPS:
        state, peak, sent = (size / PARAMETERS for size in inspect(setup, optax.adam(1e-3)))
        bare = inspect(setup, optax.sgd(1e-3))[0] / PARAMETERS
        print(
            f"| {setup.name} | {setup.workers} | {setup.fsdp} | {bare:.3f} | {state - bare:.3f} | "
            f"{peak:.2f} | {sent:.2f} |"
        )
    print(CONCLUSION)


if __name__ == "__main__":
    main()

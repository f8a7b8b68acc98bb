"""Every method of the catalogue for a few steps, in as many processes as the environment says.

    python tests/catalogue_losses.py OUT LAYOUT [NAME ...]

LAYOUT is `workers`, whose axis all devices are on, or `fsdp`, where two devices share a worker's parameters.

Process 0 writes the losses to OUT as JSON, as hexadecimal numbers, which say every bit.
"""

import json
import sys

import cases
import jax
import numpy as np
import twins
from jax.sharding import Mesh, PartitionSpec

import jaxdist as jd
from jaxdist import cluster
from jaxdist.step_metrics import everywhere

WORKERS, STEPS, DIMENSION = 8, 6, 8


def halves(path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Every vector of parameters split in two; by themselves only matrices are."""
    return PartitionSpec("fsdp") if shape and shape[0] % 2 == 0 else PartitionSpec()


def losses(name: str, layout: str) -> list[str]:
    """The losses of a method with sums in a fixed order, then the bytes of each leaf of its readout."""
    case = next(iter(cases.CASES[name].values()))
    data = twins.quadratic(WORKERS, DIMENSION, seed=3, noise=0.3)
    devices = np.array(jax.devices())
    assert devices.size == 4, "all devices of all processes"
    # The axis of parameters first: it is the one that crosses processes.
    split = Mesh(devices.reshape(2, 2), ("fsdp", "worker"))
    mesh = {"workers": Mesh(devices, ("worker",)), "fsdp": split}[layout]
    trainer = jd.execute(
        case.make(WORKERS),
        cases.loss,
        workers=WORKERS,
        mesh=mesh,
        sharding=halves if layout == "fsdp" else None,
        reproducible=True,
    )
    state, told = trainer.init(cases.start(data.dimension, np.float32, parts=case.parts)), []
    if layout == "fsdp":
        whole = [x for x in jax.tree.leaves(state) if "fsdp" in str(x.sharding.spec)]
        assert whole, "parameters are split"
    for t in range(STEPS):
        batch = {k: v.astype(np.float32) for k, v in data.arrays(t).items()}
        state, measured = trainer.step(state, batch)
        told.append(everywhere(measured["loss"], trainer).item().hex())
    for leaf in jax.tree.leaves(trainer.readout(state)):
        told.append(everywhere(leaf, trainer).astype(np.float32).tobytes().hex())
    return told


def main() -> None:
    """Joins, runs and writes."""
    out, layout, *names = sys.argv[1:]
    cluster.join()
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    found = {name: losses(name, layout) for name in names or cases.CASES}
    if jax.process_index() == 0:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()

"""Every method of the catalogue for a few steps, in as many processes as the environment says.

    python tests/catalogue_losses.py OUT [NAME ...]

Process 0 writes the losses to OUT as JSON, as hexadecimal numbers, which say every bit.
"""

import json
import sys

import cases
import jax
import numpy as np
import twins

import jaxdist as jd
from jaxdist import cluster, metrics

WORKERS, STEPS = 8, 6


def losses(name: str) -> list[str]:
    """The losses of a method with sums in a fixed order, then the sum of each leaf of its readout."""
    case = next(iter(cases.CASES[name].values()))
    data = twins.quadratic(WORKERS, 5, seed=3, noise=0.3)
    trainer = jd.execute(case.make(WORKERS), cases.loss, workers=WORKERS, reproducible=True)
    assert trainer.mesh.size == 4, "all devices of all processes"
    state, told = trainer.init(cases.start(data.dimension, np.float32, parts=case.parts)), []
    for t in range(STEPS):
        batch = {k: v.astype(np.float32) for k, v in data.arrays(t).items()}
        state, measured = trainer.step(state, batch)
        told.append(metrics.fetch(measured["loss"], trainer).item().hex())
    for leaf in jax.tree.leaves(metrics.fetch(trainer.readout(state), trainer)):
        told.append(np.asarray(leaf, np.float32).tobytes().hex())
    return told


def main() -> None:
    """Joins, runs and writes."""
    out, *names = sys.argv[1:]
    cluster.join()
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    found = {name: losses(name) for name in names or cases.CASES}
    if jax.process_index() == 0:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()

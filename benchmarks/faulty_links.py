"""What methods keep when links lose messages: the mean, and the distance from the minimizer.

Eight workers with quadratics of different curvature and different minimizers, SGD, no noise. For each
method and each probability of losing a link: by how much the mean of what the method conserves left
its path (0: preserved), and how far the readout ends from the minimizer of the mean.

    python benchmarks/faulty_links.py
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdist as jd

WORKERS, DIMENSION, RATE = 8, 4, 0.05
LOSSES = (0.0, 0.01, 0.1)


def methods() -> dict[str, jd.Algorithm]:
    """What is compared; a method that is added here is a row of the table."""
    sgd, ring = optax.sgd(RATE), jd.topology.ring(WORKERS)
    one_peer, tree = jd.topology.one_peer_exponential(WORKERS), jd.topology.tree(WORKERS)
    lazy = jd.topology.from_matrix(0.5 * np.eye(WORKERS) + 0.5 * ring.matrix(0))
    links = np.eye(WORKERS) + np.roll(np.eye(WORKERS), 1, 0)
    links[3, 0] = links[1, 6] = 1  # columns sum to one, rows do not
    one_way = jd.topology.from_matrix(links / links.sum(0))
    return {
        "gossip, ring": jd.gossip(sgd, ring),
        "gossip, one-peer": jd.gossip(sgd, one_peer),
        "push_sum, one-peer": jd.push_sum(sgd, one_peer),
        "gradient_tracking, ring": jd.gradient_tracking(sgd, ring),
        "gradient_tracking, one-peer": jd.gradient_tracking(sgd, one_peer),
        "gradient_tracking, one way": jd.gradient_tracking(sgd, one_way),
        "exact_diffusion, ring": jd.exact_diffusion(sgd, ring),
        "d2, lazy ring": jd.d2(sgd, lazy),
        "extra, ring": jd.extra(sgd, ring),
        "quasi_global_momentum, ring": jd.quasi_global_momentum(RATE, ring, momentum=0.5),
        "decentlam, ring": jd.decentlam(RATE, ring, momentum=0.5),
        "event_triggered, ring": jd.event_triggered(sgd, ring, threshold=0.5, decay=0.99),
        "relay, tree": jd.relay(sgd, tree),
    }


def quadratics(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Curvatures [W, n, n] with eigenvalues 0.5 to 2, minimizers [W, n], and that of the mean."""
    draw = np.random.default_rng(seed)
    curvature = np.empty((WORKERS, DIMENSION, DIMENSION))
    for i in range(WORKERS):
        q, _ = np.linalg.qr(draw.normal(size=(DIMENSION, DIMENSION)))
        curvature[i] = q @ np.diag(draw.uniform(0.5, 2.0, DIMENSION)) @ q.T
    target = draw.normal(size=(WORKERS, DIMENSION))
    best = np.linalg.solve(curvature.sum(0), np.einsum("wij,wj->i", curvature, target))
    return curvature, target, best


def loss(x: jax.Array, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """Half the quadratic form at the distance from the worker's own minimizer."""
    curvature, target = batch
    return 0.5 * (x - target) @ curvature @ (x - target), {}


def run(algorithm: jd.Algorithm, probability: float, steps: int) -> tuple[float, float]:
    """How far a run without gradients moves the readout, and how far one with them ends."""
    curvature, target, best = quadratics()
    faulty = jd.faulty(algorithm, jd.faults.link_loss(probability, seed=1))
    trainer = jd.execute(faulty, loss, workers=WORKERS)
    state = trainer.init(jnp.zeros(DIMENSION))
    batches = [np.broadcast_to(x, (100, *x.shape)) for x in (curvature, target)]
    silent = [np.zeros_like(batches[0]), batches[1]]
    for _ in range(steps // 100):
        state, _ = trainer.steps(state, batches)
    distance = float(np.linalg.norm(np.asarray(trainer.readout(state)) - best))
    # From a point where workers disagree, exchanges alone should leave the mean where it is.
    state = trainer.init(jnp.zeros(DIMENSION))
    state, _ = trainer.steps(state, [x[:5] for x in batches])
    before = np.asarray(trainer.readout(state))
    state, _ = trainer.steps(state, silent)
    return float(np.linalg.norm(np.asarray(trainer.readout(state)) - before)), distance


def main() -> None:
    """Runs all methods, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--methods", nargs="+", choices=methods(), default=list(methods()))
    parser.add_argument("--output", type=Path, help="write all rows as JSON")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 1)
    losses = [f"{p:.0%}" for p in LOSSES]
    print("| method | " + " | ".join(f"mean moved, {p} lost" for p in losses), end=" | ")
    print(" | ".join(f"distance, {p} lost" for p in losses) + " |")
    print("|---" * (1 + 2 * len(losses)) + "|")
    rows = []
    for name in given.methods:
        found = [run(methods()[name], p, given.steps) for p in LOSSES]
        moved, distance = zip(*found, strict=True)
        rows.append(dict(method=name, lost=LOSSES, moved=moved, distance=distance))
        cells = [f"{x:.1e}" for x in (*moved, *distance)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if given.output:
        given.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

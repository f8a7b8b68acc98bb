"""One of eight workers is four times slower: test accuracy against simulated seconds, method by method.

    python configs/studies/stragglers.py --picture stragglers.png

A gradient takes 1 simulated second, of the last worker 4; messages take none. An MLP on scikit-learn's
digits, split evenly at random; nothing is downloaded.

One learning rate for all, not tuned for each: 0.8 for a step of all workers together, 0.1 for one of eight
pushes, 0.01 for Adagrad. Seen on 24 November 2026, 2 CPU cores shared with others, 23 s of CPU time, float32:

                           s to 0.90   s to 0.95   accuracy at 320 s
    synchronous                  104         304   0.933
    gossip                       120         256   0.942
    SSP, bound 3                  80         280   0.958
    Downpour, SGD                 40          88   0.967
    Downpour, Adagrad             56           -   0.944
    DC-ASGD                       40          88   0.967
    EASGD                         48         128   0.967
    AD-PSGD                       48          88   0.975

Who waits for the slow worker (the first three, in the long run) takes four times as long for a step, and gets
to 0.95 two to three times later. At this learning rate the single evaluations of the three jump by several
hundredths, so that their last digits say little. The curve of DC-ASGD lies on that of Downpour: the squares
of these gradients are too small to correct much at strength 1.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import jaxdist as jd

WORKERS, SLOWER = 8, 4.0


def methods(learning_rate: float) -> dict[str, jd.Algorithm]:
    """Every method at one learning rate: where a server steps once a push, that divided by the workers."""
    clock = jd.clock.speeds([1.0] * (WORKERS - 1) + [1 / SLOWER])
    whole, push = optax.sgd(learning_rate), optax.sgd(learning_rate / WORKERS)
    pairs = jd.topology.random_matching(WORKERS, 16, seed=0)
    return {
        "synchronous": jd.stale_synchronous(push, clock=clock, bound=0),
        "gossip": jd.gossip(whole, jd.topology.one_peer_exponential(WORKERS)),
        "SSP, bound 3": jd.stale_synchronous(push, clock=clock, bound=3),
        "Downpour, SGD": jd.downpour(push, clock=clock),
        "Downpour, Adagrad": jd.downpour(optax.adagrad(0.01), clock=clock),
        "DC-ASGD": jd.delay_compensated(push, clock=clock, strength=1.0),
        "EASGD": jd.elastic_averaging(whole, period=4, attraction=0.9 / WORKERS, clock=clock),
        "AD-PSGD": jd.pairwise(whole, pairs, clock=clock),
    }


def curve(
    algorithm: jd.Algorithm, task: jd.tasks.Task, *, seconds: float, every: float, seed: int
) -> np.ndarray:
    """Simulated seconds and test accuracy of one run, [points, 2]."""
    trainer = jd.execute(algorithm, task.loss_fn, workers=WORKERS, seed=seed)
    state = trainer.init(task.init(jax.random.key(seed)))
    accuracy = jax.jit(task.accuracy)
    step, now, points = 0, 0.0, []
    while True:
        points.append((now, float(accuracy(trainer.readout(state), task.test))))
        if now >= seconds:
            return np.array(points)
        due = now + every
        while now < due:
            state, metrics = trainer.step(state, task.stream.batch(step))
            step += 1
            # Without a clock everybody waits for the slowest in every step.
            now = float(metrics.get("simulated_seconds", jnp.float32(step * SLOWER)))


def study(
    *,
    learning_rate: float = 0.8,
    seconds: float = 320.0,
    every: float = 8.0,
    batch_size: int = 32,
    seed: int = 0,
    picture: Path = Path("stragglers.png"),
) -> None:
    """Trains every method for the same simulated time, draws all curves and prints where they ended.

    Args:
      learning_rate: of a step that all workers take together.
      seconds: simulated, of every run.
      every: simulated seconds between two evaluations.
      batch_size: images in a gradient.
      seed: of parameters and data.
      picture: where the curves are drawn.
    """
    task = jd.tasks.digits(WORKERS, batch_size=batch_size, seed=seed)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    print(f"{'':20}   s to 0.90   s to 0.95   accuracy at {seconds:.0f} s")
    for name, algorithm in methods(learning_rate).items():
        points = curve(algorithm, task, seconds=seconds, every=every, seed=seed)
        axes.plot(*points.T, marker="o", markersize=3, label=name)
        reached = [_first(points, level) for level in (0.90, 0.95)]
        print(f"{name:20} {reached[0]:>11} {reached[1]:>11}   {points[-1, 1]:.3f}", flush=True)
    axes.set(
        xlabel="simulated seconds",
        ylabel="test accuracy of the readout",
        ylim=(0.5, 1.0),
        title=f"digits, {WORKERS} workers, one {SLOWER:.0f} times slower",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    print(f"drawn: {picture}")


def _first(points: np.ndarray, level: float) -> str:
    at = np.flatnonzero(points[:, 1] >= level)
    return f"{points[at[0], 0]:.0f}" if len(at) else "-"


if __name__ == "__main__":
    tyro.cli(study)

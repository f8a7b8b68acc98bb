"""Eight workers learn handwritten digits by DiLoCo, agreeing every 20 steps.

    jaxdist train configs/digits_diloco.py

An MLP on scikit-learn's digits, split evenly at random; nothing is downloaded.
Seen on 24 November 2026, 2 CPU cores, one device, 8 s with imports and compiling: test accuracy 0.969,
0.969 for the worst worker, 0.58 MB sent by each worker.
"""

import optax

import jaxdist as jd


def experiment(
    *,
    workers: int = 8,
    learning_rate: float = 0.1,
    period: int = 20,
    batch_size: int = 32,
    steps: int = 600,
    seed: int = 0,
) -> jd.Experiment:
    """The experiment; its keywords are what the command line can set."""
    return jd.Experiment(
        algorithm=jd.diloco(
            optax.sgd(learning_rate, momentum=0.9),
            optax.sgd(0.7, momentum=0.9, nesterov=True),
            period=period,
        ),
        task=jd.tasks.digits(workers, batch_size=batch_size, seed=seed),
        steps=steps,
        workers=workers,
        seed=seed,
    )

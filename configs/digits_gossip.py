"""Eight workers learn handwritten digits by gossip, one neighbor a step, with no server.

    jaxdist train configs/digits_gossip.py

An MLP on scikit-learn's digits, split evenly at random; nothing is downloaded.
Seen on 24 November 2026, 2 CPU cores, one device, 11 s with imports and compiling: test accuracy 0.978,
0.975 for the worst worker, 11.5 MB sent by each worker.
"""

import optax

import jaxdist as jd


def experiment(
    *,
    workers: int = 8,
    learning_rate: float = 0.1,
    batch_size: int = 32,
    steps: int = 600,
    seed: int = 0,
) -> jd.Experiment:
    """The experiment; its keywords are what the command line can set."""
    return jd.Experiment(
        algorithm=jd.gossip(
            optax.sgd(learning_rate, momentum=0.9), jd.topology.one_peer_exponential(workers)
        ),
        task=jd.tasks.digits(workers, batch_size=batch_size, seed=seed),
        steps=steps,
        workers=workers,
        seed=seed,
    )

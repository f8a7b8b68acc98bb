"""Eight workers learn handwritten digits by stochastic gradient push over one-way links.

    jaxdist train configs/digits_push_sum.py
    jaxdist train configs/digits_push_sum.py --delay 2    # messages arrive two steps late

An MLP on scikit-learn's digits, split evenly at random; nothing is downloaded. Each worker sends to those
1, 2 and 4 places on and need not hear from any of them. Method: Assran et al., arXiv:1811.10792.
Seen on 24 November 2026, 2 CPU cores shared with other jobs, one device, 46 s with imports and compiling:
test accuracy 0.975, 0.969 for the worst worker, consensus distance 0.027, 34.6 MB sent by each worker.
With --delay 2, 47 s: 0.975, 0.972 for the worst worker, consensus distance 0.059.
"""

import optax

import jaxdist as jd


def experiment(
    *,
    workers: int = 8,
    learning_rate: float = 0.1,
    delay: int = 0,
    batch_size: int = 32,
    steps: int = 600,
    seed: int = 0,
) -> jd.Experiment:
    """The experiment; its keywords are what the command line can set."""
    return jd.Experiment(
        algorithm=jd.push_sum(
            optax.sgd(learning_rate, momentum=0.9), jd.topology.exponential(workers), delay=delay
        ),
        task=jd.tasks.digits(workers, batch_size=batch_size, seed=seed),
        steps=steps,
        workers=workers,
        seed=seed,
    )

"""What a checkpoint costs the loop: written in place, and written behind its back.

    python benchmarks/checkpoint_cost.py [--megabytes 64] [--rounds 5] [--folder SHARED]

Started in several processes (`JAX_COORDINATOR_ADDRESS` and so on) it is one job, a worker in each, that saves
to one folder.

A momentum step of a large vector on one CPU device, a save after every few steps. Rounds alternate: no save,
in place, behind. `stands` is how long the loop stands in one call of save; `round` is how long the
round took, the steps and the last wait included, as a ratio to the round with no save beside it. Medians.

Seen on 24 November 2026 on 2 CPU cores that other programs kept busy, a state of 16 MB, 2 saves a round:

    steps between   kind       stands (s)   round
                5   in place        0.148    2.53
                5   behind          0.079    2.92
               30   in place        0.195    1.40
               30   behind          0.048    1.69

On 25 November 2026 on the same machine, its cores again busy (a load of 2 to 9), a state of 64 MB, 2 saves a
round, 5 rounds; the last two rows are one job of two processes, with a worker in each:

    steps between   kind                      stands (s)   round
               20   in place                       0.164    1.11
               20   behind                         0.112    1.20
               60   in place                       0.297    1.06
               60   behind                         0.214    1.19
               20   in place, two processes        0.478    1.12
               20   behind, two processes          0.239    0.90

The loop stands for a quarter to three quarters as long. The round is no shorter: where the CPU is busy, the
thread takes from the steps what it spares them (0.90 is within what others' work does to these rounds).
Not measured with an accelerator, whose steps do not need the host.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdist as jd
from jaxdist import cluster
from jaxdist.saving import saving

KINDS = ("none", "in place", "behind")


def measured(
    trainer: jd.Trainer, state: Any, batch: Any, kind: str, options: Any, *, of: int = 0
) -> Any:
    """The state, the seconds in each save, and the seconds of the round."""
    stands, began = [], time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as own,
        saving(
            f"{options.folder}/{kind}{of}" if options.folder else own,
            keep=2,
            asynchronously=kind == "behind",
        ) as saver,
    ):
        for step in range(1, options.saves * options.steps + 1):
            state, _ = trainer.step(state, batch)
            if step % options.steps == 0:
                jax.block_until_ready(state)
                before = time.monotonic()
                if kind != "none":
                    saver.save(step, state)
                stands.append(time.monotonic() - before)
        saver.wait()
        jax.block_until_ready(state)
        seconds = time.monotonic() - began
    return state, stands, seconds


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="What a checkpoint costs the loop.")
    parser.add_argument("--megabytes", type=int, default=64, help="of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--saves", type=int, default=3, help="in a round")
    parser.add_argument("--steps", type=int, default=20, help="between two saves")
    parser.add_argument("--folder", help="an empty one that all processes see")
    options = parser.parse_args()
    cluster.join()

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return jnp.mean(jnp.square(jnp.tanh(params) - batch)), {}

    trainer = jd.execute(
        jd.all_reduce(optax.sgd(0.1, momentum=0.9)), loss, workers=jax.process_count()
    )
    state = trainer.init(jnp.ones(options.megabytes * 2**20 // 8))
    batch = np.ones((jax.process_count(), 1), np.float32)
    state, *_ = measured(trainer, state, batch, "in place", options, of=-1)
    stands: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rounds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds):
        for kind in KINDS:
            state, own, seconds = measured(trainer, state, batch, kind, options, of=number)
            stands[kind] += own
            rounds[kind].append(seconds)
    if jax.process_index():
        return
    print("kind         stands (s)   round")
    for kind in KINDS:
        ratio = statistics.median(a / b for a, b in zip(rounds[kind], rounds["none"], strict=True))
        print(f"{kind:12} {statistics.median(stands[kind]):10.3f} {ratio:7.2f}")


if __name__ == "__main__":
    main()

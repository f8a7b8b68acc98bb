"""One process of a job that restores, trains and saves; what it saw is printed as JSON, a line each.

    python tests/restarts.py SAVE STEPS FIRST [FOLDER ...]

Restores every FOLDER, goes on from the last one (or from the beginning) at step FIRST, and after STEPS steps
saves to SAVE: behind the loop, and once more as a URL.
"""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import jaxdist as jd
from jaxdist import checkpoint, cluster, stored_arrays
from jaxdist.saving import saving

WORKERS, BATCH, EPOCH = 12, 2, 8


def digest(state):
    """A few digits of all bits of a state."""
    arrays = stored_arrays.arrays_of(stored_arrays.named(state))
    whole = [stored_arrays.whole(x).tobytes() for x in arrays.values()]
    return hashlib.sha256(b"".join(whole)).hexdigest()[:16]


def say(**line):
    print(json.dumps(line), flush=True)


def no_program(name):
    raise AssertionError(f"a save met the others in a program on the devices: {name}")


def main(save, steps, first, *folders):
    cluster.join()
    multihost_utils.sync_global_devices = no_program
    draw = np.random.default_rng(0)
    count = WORKERS * BATCH * EPOCH
    examples = {"x": draw.normal(size=(count, 3)).astype(np.float32), "id": np.arange(count)}
    examples["id"] = examples["id"].astype(np.int32)
    parts = jd.data.split.iid(count, WORKERS, seed=0)
    stream = jd.data.Stream(examples, parts, batch_size=BATCH, seed=0)

    def loss(params, batch, key):
        noise = jax.random.normal(key, (3,))
        return jnp.mean((batch["x"] @ params - 1.0) ** 2) + 0.01 * noise @ params, {}

    rule = jd.gossip(optax.sgd(0.1, momentum=0.9), jd.topology.ring(WORKERS))
    trainer = jd.execute(rule, loss, workers=WORKERS, reproducible=True)
    state = trainer.init(jnp.zeros(3))
    for folder in folders:
        found = checkpoint.restore(folder, state)
        say(restored=folder, step=found.step, digest=digest(found.state))
        state = found.state
    last = int(first) + int(steps)
    with saving(f"{save}/disk", keep=2) as saver:
        for step in range(int(first), last):
            batch = trainer.place(stream.batch(step))
            shards = [np.asarray(shard.data).ravel() for shard in batch["id"].addressable_shards]
            say(ids=np.concatenate(shards).tolist())
            state, _ = trainer.step(state, batch)
            if step >= last - 2:
                saver.save(step + 1, state)
    checkpoint.save(f"file://{save}/url", last, state)
    say(saved=last, digest=digest(state))


if __name__ == "__main__":
    main(*sys.argv[1:])

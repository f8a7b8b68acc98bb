"""Eight workers learn MNIST by gossip with Adam: an MLP 784-64-10, batches of 32, five epochs.

    jaxdist train configs/mnist_mlp.py

MNIST must be prepared once, which downloads 11 MB and needs TensorFlow; training does not:

    pip install -c constraints.txt '.[prepare]'
    jaxdist data prepare mnist

Without that the first command says so, and trains nothing. Where there is no network the second names the
four files it wants and the folder to put them in.
Accuracy and time on MNIST itself: not measured. The tests run this config on drawn images of its shape.
"""

import optax

import jaxdist as jd


def experiment(
    *,
    workers: int = 8,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    epochs: int = 5,
    train: str = "train",
    test: str = "test",
    resident: bool = False,
    seed: int = 0,
) -> jd.Experiment:
    """The experiment; its keywords are what the command line can set."""
    task = jd.tasks.mnist(workers, batch_size=batch_size, train=train, test=test, seed=seed)
    examples = len(task.stream.examples["label"])
    steps = epochs * examples // (workers * batch_size)
    return jd.Experiment(
        algorithm=jd.gossip(optax.adam(learning_rate), jd.topology.one_peer_exponential(workers)),
        task=task,
        steps=steps,
        workers=workers,
        seed=seed,
        resident=resident,
    )

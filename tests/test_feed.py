"""Examples that stay on the devices give the batches of the host, bit for bit."""

import jax
import numpy as np
import optax
import pytest
import runs
from jax.sharding import AxisType

import jaxdist as jd
from jaxdist import cli, experiment, feed


def digits(workers):
    return jd.tasks.digits(workers, batch_size=4, split="dirichlet")


def mesh(*shape):
    names = ("worker", "fsdp")[: len(shape)]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, devices=devices, axis_types=(AxisType.Auto,) * len(shape))


@pytest.mark.parametrize("shape", [(1,), (4,), (8,), (2, 2)], ids=str)
def test_the_resident_batches_are_those_of_the_host_and_lie_where_they_would(shape):
    task = digits(8)
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), task.loss_fn, workers=8, mesh=mesh(*shape))
    with feed.batches(task.stream, trainer, 357, resident=True) as made:
        for step in range(357, 362):  # the end of an epoch of the smaller shards is among them
            batch = next(made)
            for name, wanted in task.stream.batch(step).items():
                np.testing.assert_array_equal(batch[name], wanted)
                assert batch[name].dtype == wanted.dtype
                placed = trainer.place(wanted)
                assert batch[name].sharding.is_equivalent_to(placed.sharding, placed.ndim)


def test_a_step_sends_row_numbers_and_no_examples():
    task = digits(4)
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), task.loss_fn, workers=4, mesh=mesh(4))
    sent = []

    def place(leaf):
        sent.append((leaf.shape, leaf.dtype))
        return trainer.place(leaf)

    with feed.batches(task.stream, trainer._replace(place=place), 0, resident=True) as made:
        next(made)
    assert set(sent) == {((4, 4), np.dtype(np.int32))}


def test_moving_nothing_between_devices_is_what_the_program_does():
    task = digits(4)
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), task.loss_fn, workers=4, mesh=mesh(4))
    rows = trainer.place(task.stream.indices(0, 1)[0].astype(np.int32))
    examples = feed.everywhere(task.stream, trainer)
    text = feed.gather.lower(examples, rows, rows.sharding).compile().as_text()
    assert "gather" in text
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in text


def test_a_stream_without_a_table_is_refused():
    task = digits(2)

    class Endless:
        workers = 2

        def batch(self, step):
            return task.stream.batch(step)

    with pytest.raises(ValueError, match="the stream is a Endless: expected a jd.data.Stream"):
        jd.Experiment(
            algorithm=jd.all_reduce(optax.sgd(0.1)),
            task=task._replace(stream=Endless()),
            steps=1,
            workers=2,
            resident=True,
        )


def test_a_run_is_the_same_run_either_way(tmp_path):
    text = (runs.CONFIGS / "digits_all_reduce.py").read_text()
    text = text.replace("seed: int = 0,\n)", "seed: int = 0,\n    resident: bool = False,\n)")
    text = text.replace(
        "        seed=seed,\n    )\n", "        seed=seed,\n        resident=resident,\n    )\n"
    )
    config = tmp_path / "either.py"
    config.write_text(text)
    for option in ("--resident", "--no-resident"):
        assert experiment.read(str(config), [option]).experiment.resident == (
            option == "--resident"
        )
        folder = str(tmp_path / option)
        assert cli.main(["train", str(config), "--steps", "12", option, "--workdir", folder]) == 0
    assert runs.recorded(tmp_path / "--resident") == runs.recorded(tmp_path / "--no-resident")

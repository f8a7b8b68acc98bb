"""Saves behind the loop's back, and what a disk does to them."""

import contextlib
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd
from jaxdist import checkpoint, manifest, metrics
from jaxdist.saving import saving


def bits(state):
    return [
        np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).tobytes()
        for x in jax.tree.leaves(state)
    ]


def test_what_is_saved_is_the_state_of_the_call_though_the_loop_goes_on(
    tmp_path, monkeypatch, standard_promotion
):
    def loss(params, batch, key):
        return jnp.mean((batch @ params - 1.0) ** 2), {}

    rule = optax.chain(optax.add_noise(0.1, 0.0, key=0), optax.sgd(0.1, momentum=0.9))
    trainer = jd.execute(jd.gossip(rule, jd.topology.ring(8)), loss, workers=8)
    batch = np.random.default_rng(0).normal(size=(8, 4, 3)).astype(np.float32)
    state, expected = trainer.init(jnp.ones(3)), {}
    real = checkpoint.write

    def slow(*given, **named):
        time.sleep(0.2)
        real(*given, **named)

    monkeypatch.setattr(checkpoint, "write", slow)
    with saving(tmp_path, keep=2) as saver:
        for step in range(1, 10):
            state, _ = trainer.step(state, batch)
            if step % 3 == 0:
                expected[step] = bits(state)
                saver.save(step, state)
    assert checkpoint.steps(tmp_path) == [6, 9]
    for step in (6, 9):
        found = checkpoint.restore(tmp_path, trainer.init(jnp.zeros(3)), step=step)
        assert bits(found.state) == expected[step]
    assert expected[6] != expected[9]


def test_the_loop_waits_only_for_the_save_before(tmp_path, monkeypatch):
    goes_on = threading.Event()
    began = []

    def held(directory, step, ready, **named):
        began.append(step)
        assert goes_on.wait(30)

    monkeypatch.setattr(checkpoint, "write", held)
    state = {"w": jnp.ones(3)}
    with saving(tmp_path) as saver:
        saver.save(1, state)  # returns, although nothing is written yet
        threading.Timer(0.2, goes_on.set).start()
        saver.save(2, state)
        assert goes_on.is_set()
        saver.wait()
        assert began == [1, 2]
    goes_on.clear()
    threading.Timer(0.2, goes_on.set).start()
    with saving(tmp_path, asynchronously=False) as saver:
        saver.save(3, state)
        assert goes_on.is_set()


def test_a_step_that_is_there_is_left_and_an_error_comes_with_the_next_call(tmp_path, monkeypatch):
    good, bad = {"w": jnp.ones(3)}, {"w": jnp.full(3, np.nan)}
    with saving(tmp_path) as saver:
        saver.save(1, good)
        saver.save(1, bad)
        with pytest.raises(FloatingPointError, match="there is NaN in"):
            saver.save(2, bad)
    assert checkpoint.steps(tmp_path) == [1]

    def broken(*given, **named):
        raise OSError("the disk")

    def to_the_end():
        with saving(tmp_path) as saver:
            saver.save(2, good)

    monkeypatch.setattr(checkpoint, "write", broken)
    with saving(tmp_path) as saver:
        saver.save(2, good)
        with pytest.raises(OSError, match="the disk"):
            saver.save(3, good)
    with pytest.raises(OSError, match="the disk"):
        to_the_end()


@contextlib.contextmanager
def largest_file(size):
    """A disk that is full, as far as this process can tell: EFBIG in place of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_with_numbers_and_spoils_nothing(tmp_path):
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=2**18), jnp.float32)}
    checkpoint.save(tmp_path, 1, state)
    with largest_file(2**16), pytest.raises(OSError, match="step 2 was not saved") as raised:
        checkpoint.save(tmp_path, 2, state)
    assert "needs 1,048,576 bytes" in str(raised.value)
    assert "there are steps [1]" in str(raised.value)
    assert checkpoint.restore(tmp_path, state).step == 1
    with saving(tmp_path) as saver, largest_file(2**16):
        saver.save(2, state)
        with pytest.raises(OSError, match="step 2 was not saved"):
            saver.wait()
    checkpoint.save(tmp_path, 2, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    assert bits(checkpoint.restore(tmp_path, state).state) == bits(state)


def test_a_folder_that_is_removed_while_a_run_writes_to_it_ends_the_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with metrics.recording(folder, begin=0, steps=2) as recorder:
        recorder.write(1, {"loss": 1.0}, 0)
        recorder.sync()
        shutil.rmtree(folder)
        recorder.write(2, {"loss": 1.0}, 0)
        with pytest.raises(OSError, match="is gone"):
            recorder.sync()


def test_every_bit_that_is_flipped_in_any_file_is_seen(tmp_path):
    """One bit of every byte of every file of a step."""
    checkpoint.save(tmp_path, 1, {"w": jnp.arange(3.0), "n": jnp.int32(1)})
    step, draw, seen = tmp_path / "1", np.random.default_rng(0), 0
    listing = manifest.read_json(step / manifest.MANIFEST)
    for name, file in {**manifest.files(step), manifest.MANIFEST: step / manifest.MANIFEST}.items():
        whole = file.read_bytes()
        for place in range(len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << int(draw.integers(8))
            file.write_bytes(data)
            fault = manifest.fault(step)
            if not fault:
                # Of the manifest alone: white space, which changes nothing of what it says.
                assert name == manifest.MANIFEST
                assert manifest.read_json(file) == listing
            seen += 1
        file.write_bytes(whole)
    assert seen > 1000
    assert not manifest.fault(step)


@pytest.mark.parametrize(
    ("number", "more"), [(2, "; a newer one wrote it: install that"), (0, "$")]
)
def test_another_format_is_named(tmp_path, number, more):
    checkpoint.save(tmp_path, 1, {"w": jnp.ones(3)})
    file = tmp_path / "1" / manifest.MANIFEST
    file.write_text(file.read_text().replace('"format": 1', f'"format": {number}'))
    with pytest.raises(ValueError, match=f"format {number}, and this jaxdist reads 1{more}"):
        checkpoint.restore(tmp_path, {"w": jnp.ones(3)})


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_state_is_restored_bit_for_bit_on_any_number_of_devices(tmp_path, devices):
    def on(count):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("worker",))
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("worker"))
        draw = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
        return {"x": jax.device_put(draw, where)}

    checkpoint.save(tmp_path, 1, on(4))
    found = checkpoint.restore(tmp_path, on(devices)).state
    assert len(found["x"].sharding.device_set) == devices
    assert bits(found) == bits(on(4))


MESHES = {
    "workers first": lambda devices: jax.sharding.Mesh(devices.reshape(4, 2), ("worker", "fsdp")),
    "workers last": lambda devices: jax.sharding.Mesh(devices.reshape(2, 4), ("fsdp", "worker")),
    "other devices": lambda devices: jax.sharding.Mesh(
        devices[::-1].reshape(2, 4), ("worker", "fsdp")
    ),
}


@pytest.mark.parametrize(
    ("saved", "restored"),
    [("workers first", "workers last"), ("workers last", "other devices")],
)
def test_a_state_is_restored_bit_for_bit_on_a_mesh_of_another_order(tmp_path, saved, restored):
    def loss(params, batch, key):
        return jnp.mean((batch @ params["w"] - 1.0) ** 2), {}

    def trainer_on(name):
        mesh = MESHES[name](np.array(jax.devices()))
        rule = optax.sgd(0.1, momentum=0.9)
        algorithm = jd.diloco(rule, optax.sgd(0.7, momentum=0.9), period=2)
        return jd.execute(algorithm, loss, workers=8, mesh=mesh)

    draw = np.random.default_rng(0)
    batch = draw.normal(size=(8, 4, 64)).astype(np.float32)
    params = {"w": draw.normal(size=(64, 64)).astype(np.float32)}
    before, after = trainer_on(saved), trainer_on(restored)
    state = before.init(params)
    for _ in range(3):
        state, _ = before.step(state, batch)
    checkpoint.save(tmp_path, 3, state)
    fresh = after.init(params)
    found = checkpoint.restore(tmp_path, fresh).state
    places = [[x.sharding for x in jax.tree.leaves(one)] for one in (found, fresh)]
    assert places[0] == places[1]
    assert any("fsdp" in str(where.spec) for where in places[0])
    assert bits(found) == bits(state)
    # And it goes on from there: step 4 is an outer one.
    (one, _), (other, _) = before.step(state, batch), after.step(found, batch)
    np.testing.assert_allclose(
        after.readout(other)["w"], before.readout(one)["w"], rtol=1e-5, atol=1e-6
    )

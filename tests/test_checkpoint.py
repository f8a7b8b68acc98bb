"""Checkpoints: bit for bit on any devices, every damage detected, nothing bad over something good."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxdist as jd
from jaxdist import checkpoint, cluster, manifest
from jaxdist.algorithms.base import State

KINDS = ("flipped", "truncated", "deleted")


def state_of(seed=0):
    rng = np.random.default_rng(seed)
    return State(
        jnp.int32(seed),
        {
            "w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
            "none": None,
            "a/b.c": jnp.zeros(2),
        },
        (
            jnp.asarray(rng.normal(size=(8, 5)), jnp.bfloat16),
            jax.random.split(jax.random.key(seed), 8),
            jax.random.key(seed, impl="rbg"),
            jnp.arange(8, dtype=jnp.int32),
            optax.EmptyState(),
            jnp.zeros((8, 0)),
        ),
    )


def bits(x):
    data = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return str(x.dtype), x.shape, np.asarray(data).tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [bits(x) for x in jax.tree.leaves(a)] == [bits(x) for x in jax.tree.leaves(b)]


def damage(path, kind):
    if kind == "deleted":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if kind == "flipped" else data[:-1])


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def placed(state, devices):
    mesh = Mesh(np.array(devices), ("worker",))

    def on(spec):
        return lambda x: jax.device_put(x, NamedSharding(mesh, spec))

    local = jax.tree.map(
        lambda x: on(PartitionSpec("worker") if x.ndim else PartitionSpec())(x), state.local
    )
    shared = jax.tree.map(on(PartitionSpec()), (state.step, state.shared))
    return State(*shared, local)


def structs(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_a_round_trip_is_bit_for_bit(tmp_path):
    state = state_of(3)
    extra = {"seed": 3, "loss": 0.1, "names": ["é"], "more": {"none": None}}
    checkpoint.save(tmp_path / "new" / "run", 3, state, extra=extra)
    found = checkpoint.restore(tmp_path / "new" / "run", state)
    assert found.step == 3
    assert found.extra == extra
    assert found.said == ()
    assert_same(found.state, state)


def test_nothing_there_is_none(tmp_path):
    assert checkpoint.restore(tmp_path, state_of()) is None
    assert checkpoint.restore(tmp_path / "nowhere", state_of()) is None
    assert not (tmp_path / "nowhere").exists()


def test_the_target_decides_on_which_devices_a_state_lies(tmp_path):
    state = state_of()
    checkpoint.save(tmp_path, 1, placed(state, jax.devices()[:8]))
    like = placed(state_of(5), jax.devices()[:2])
    for target in (like, structs(like)):
        found = checkpoint.restore(tmp_path, target)
        assert_same(found.state, state)
        for got, want in zip(*map(jax.tree.leaves, (found.state, like)), strict=True):
            assert got.sharding.is_equivalent_to(want.sharding, got.ndim)


def test_a_run_goes_on_on_other_devices(tmp_path):
    def loss(params, batch, key):
        return jnp.mean((batch @ params - 1.0) ** 2), {}

    def trainer(devices):
        mesh = jax.make_mesh((devices,), ("worker",), devices=jax.devices()[:devices])
        rule = jd.gossip(optax.sgd(0.1, momentum=0.9), jd.topology.ring(8))
        return jd.execute(rule, loss, workers=8, mesh=mesh, reproducible=True)

    batch = np.random.default_rng(0).normal(size=(8, 4, 3)).astype(np.float32)
    many, few = trainer(8), trainer(2)
    state, _ = many.step(many.init(jnp.ones(3)), batch)
    checkpoint.save(tmp_path, 1, state)
    found = checkpoint.restore(tmp_path, few.init(jnp.zeros(3)))
    assert_same(found.state, state)
    on_few, _ = few.step(found.state, batch)
    on_many, _ = many.step(state, batch)
    for a, b in zip(jax.tree.leaves(on_few), jax.tree.leaves(on_many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    state = state_of()
    state = State(state.step, {"w": state.shared["w"]}, jax.random.key(1))
    checkpoint.save(root, 1, state, extra={"at": 1})
    newer = State(state.step + 1, {"w": state.shared["w"] + 1}, jax.random.key(2))
    checkpoint.save(root, 2, newer, extra={"at": 2})
    return root, state


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_to_any_file_is_seen_and_the_older_step_is_taken(two_steps, tmp_path, kind):
    saved, state = two_steps
    names = [p.relative_to(saved) for p in files_of(saved / "2")]
    assert len(names) >= 6
    root = tmp_path / "run"
    shutil.copytree(saved, root)
    for name in names:
        if kind != "deleted" and not (root / name).stat().st_size:
            continue
        whole = (root / name).read_bytes()
        damage(root / name, kind)
        fault = manifest.fault(root / "2")
        assert name.name in fault, (name, fault)
        assert "\n" not in fault
        found = checkpoint.restore(root, state)
        assert (found.step, found.extra) == (1, {"at": 1})
        assert found.said == (f"step 2 refused: {fault}",)
        assert_same(found.state, state)
        (root / name).write_bytes(whole)
    assert checkpoint.restore(root, state).step == 2


def test_every_bit_of_the_manifest_is_guarded(two_steps, tmp_path):
    saved, _ = two_steps
    shutil.copytree(saved / "2", tmp_path / "2")
    whole = (tmp_path / "2" / "manifest.json").read_bytes()
    listing = json.loads(whole)
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1
        (tmp_path / "2" / "manifest.json").write_bytes(data)
        try:
            harmless = json.loads(data) == listing
        except ValueError:
            harmless = False
        assert harmless or manifest.fault(tmp_path / "2")


def test_a_file_that_nobody_listed_is_refused(two_steps, tmp_path):
    shutil.copytree(two_steps[0] / "1", tmp_path / "1")
    (tmp_path / "1" / "state" / "d" / "more").write_bytes(b"x")
    assert "more is not in manifest.json" in manifest.fault(tmp_path / "1")


def test_all_corrupt_is_an_error_that_lists_them(two_steps, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(two_steps[0], root)
    for step in ("1", "2"):
        damage(root / step / "about" / "metadata", "flipped")
    with pytest.raises(
        ValueError, match=r"(?s)step 2 refused: .*metadata.*step 1 refused: .*metadata"
    ):
        checkpoint.restore(root, two_steps[1])


def test_a_step_that_one_process_can_not_read_is_taken_by_none(two_steps, monkeypatch):
    answers = iter([[1, 2], "its disk", ""])

    def everyone(name, value):
        return [value, next(answers)]

    monkeypatch.setattr(cluster, "everyone", everyone)
    found = checkpoint.restore(two_steps[0], two_steps[1])
    assert (found.step, found.said) == (1, ("step 2 refused: its disk",))
    answers = iter([[1, 2], None, ""])
    found = checkpoint.restore(two_steps[0], two_steps[1])
    assert (found.step, found.said) == (1, ("step 2 refused: a process said nothing of it",))


def test_a_step_that_is_asked_for_is_taken_or_nothing(two_steps, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(two_steps[0], root)
    assert checkpoint.restore(root, two_steps[1], step=1).step == 1
    damage(root / "2" / "about" / "metadata", "truncated")
    with pytest.raises(ValueError, match="step 2 refused"):
        checkpoint.restore(root, two_steps[1], step=2)
    with pytest.raises(ValueError, match=r"no step 7 .* \[1, 2\]"):
        checkpoint.restore(root, two_steps[1], step=7)


def test_a_step_without_manifest_is_skipped(two_steps, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(two_steps[0], root)
    (root / "2" / "manifest.json").unlink()
    found = checkpoint.restore(root, two_steps[1])
    assert found.step == 1
    assert "its save was cut short" in found.said[0]


def test_what_a_killed_save_left_is_ignored_and_then_removed(two_steps, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(two_steps[0], root)
    left = root / "3.orbax-checkpoint-tmp"
    shutil.copytree(root / "2", left)
    (root / "notes.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.restore(root, two_steps[1]).step == 2
    assert left.exists()
    checkpoint.save(root, 3, two_steps[1])
    assert not left.exists()
    assert (root / "notes.orbax-checkpoint-tmp").exists()
    assert checkpoint.restore(root, two_steps[1]).step == 3


def test_a_step_is_never_overwritten_and_a_broken_one_is_set_aside(two_steps, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(two_steps[0], root)
    with pytest.raises(ValueError, match="step 2 is in .* already"):
        checkpoint.save(root, 2, two_steps[1])
    damage(root / "2" / "about" / "metadata", "flipped")
    broken = (root / "2" / "about" / "metadata").read_bytes()
    checkpoint.save(root, 2, two_steps[1])
    assert checkpoint.restore(root, two_steps[1]).said == ()
    assert (root / "2.refused-1" / "about" / "metadata").read_bytes() == broken


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s._replace(shared={"w": s.shared["w"].astype(jnp.bfloat16)}),
            "'w'.*float32.*bfloat16",
        ),
        (lambda s: s._replace(shared={"w": s.shared["w"].T}), r"'w'.*shape \[3, 4\].*\[4, 3\]"),
        (lambda s: s._replace(shared={"v": s.shared["w"]}), "lacks .*'v'.* has .*'w'"),
        (
            lambda s: s._replace(local=jax.random.key(0, impl="rbg")),
            "local has dtype key<fry>.*key<rbg>",
        ),
        (lambda s: s._replace(step=0), "step is 0, no array"),
    ],
)
def test_another_tree_shape_or_dtype_is_named(two_steps, change, said):
    with pytest.raises(ValueError, match=said):
        checkpoint.restore(two_steps[0], change(two_steps[1]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nan_is_not_saved_and_infinity_is(two_steps, tmp_path, dtype):
    state = two_steps[1]._replace(shared={"w": jnp.ones((2, 2), dtype).at[1, 1].set(np.nan)})
    with pytest.raises(FloatingPointError, match=r"NaN in: shared\['w'\]"):
        checkpoint.save(tmp_path / "run", 3, state)
    assert not (tmp_path / "run").exists()
    state = state._replace(shared={"w": state.shared["w"].at[1, 1].set(np.inf)})
    checkpoint.save(tmp_path / "run", 3, state)
    assert checkpoint.restore(tmp_path / "run", state).state.shared["w"][1, 1] == np.inf


def test_nan_of_one_worker_is_named_with_it(tmp_path):
    state = placed(state_of(), jax.devices()[:8])
    kept = state.local[0].at[5, 2].set(np.nan)
    with pytest.raises(FloatingPointError, match=r"NaN in: local\[0\] of worker 5$"):
        checkpoint.save(tmp_path, 1, state._replace(local=(kept, *state.local[1:])))


@pytest.mark.parametrize(
    "extra", [{"a": float("nan")}, {"a": {1}}, {1: 2}, {"a": (1,)}, [1], {"a": "x" * 2**24}]
)
def test_extra_comes_back_as_it_was_or_is_refused(two_steps, tmp_path, extra):
    with pytest.raises(ValueError, match="extra"):
        checkpoint.save(tmp_path / "run", 3, two_steps[1], extra=extra)
    assert not (tmp_path / "run").exists()


def test_json_that_is_too_large_is_not_read(two_steps, tmp_path):
    shutil.copytree(two_steps[0] / "1", tmp_path / "1")
    with (tmp_path / "1" / "manifest.json").open("r+b") as file:
        file.truncate(2**40)
    assert "at most" in manifest.fault(tmp_path / "1")
    shutil.copytree(two_steps[0] / "1", tmp_path / "2")
    with (tmp_path / "2" / "state" / "_METADATA").open("r+b") as file:
        file.truncate(2**25)
    manifest.write(tmp_path / "2")
    with pytest.raises(ValueError, match="_METADATA has .* at most"):
        checkpoint.restore(tmp_path, two_steps[1], step=2)


@pytest.mark.parametrize(
    ("field", "value"), [("shape", (4, 4)), ("shape", (2, 4)), ("dtype", jnp.bfloat16)]
)
def test_a_step_that_lies_about_its_arrays_is_not_believed(two_steps, tmp_path, field, value):
    shutil.copytree(two_steps[0] / "1", tmp_path / "1")
    about = tmp_path / "1" / "about" / "metadata"
    said = json.loads(about.read_bytes())
    what = {"shape": (3, 4), "dtype": jnp.float32, field: value}
    like = two_steps[1]._replace(shared={"w": jnp.zeros(**what)})
    said["leaves"][1][1:] = [list(what["shape"]), str(like.shared["w"].dtype)]
    about.write_text(json.dumps(said))
    manifest.write(tmp_path / "1")
    with pytest.raises(ValueError, match="in its files"):
        checkpoint.restore(tmp_path, like)
    said["leaves"] = [1, [2]]
    about.write_text(json.dumps(said))
    manifest.write(tmp_path / "1")
    with pytest.raises(ValueError, match="step 1 refused: .* lacks leaves"):
        checkpoint.restore(tmp_path, like)


def test_keep_leaves_the_newest_and_never_counts_a_future_that_was_given_up(two_steps, tmp_path):
    state = two_steps[1]
    for step in (1, 2, 10):
        shutil.copytree(two_steps[0] / "1", tmp_path / str(step))
    for step in (3, 4):
        checkpoint.save(tmp_path, step, state, keep=2)
    assert checkpoint.steps(tmp_path) == [3, 4, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "3", "4"]


@pytest.mark.parametrize(("step", "keep"), [(-1, None), (True, None), (1.0, None), (1, 0)])
def test_numbers_that_are_none_are_refused(two_steps, tmp_path, step, keep):
    with pytest.raises(ValueError, match="not a number of steps"):
        checkpoint.save(tmp_path, step, two_steps[1], keep=keep)


def test_a_scheme_that_nothing_reads_is_refused_with_what_to_install(two_steps, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match="nothing here reads gs://; write pip install gcsfs"):
        checkpoint.save("gs://bucket/run", 1, two_steps[1])
    with pytest.raises(ValueError, match="'nothing'; write a path, or gs://"):
        checkpoint.save("nothing://bucket/run", 1, two_steps[1])
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(
        ValueError, match=r"universal_pathlib; write pip install 'jaxdist\[stores\]'"
    ):
        checkpoint.save("memory://bucket/run", 1, two_steps[1])


def test_a_save_killed_before_its_manifest_never_was_a_checkpoint(tmp_path, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    state = state_of()
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 7, state)
    assert (tmp_path / "7").is_dir()
    assert checkpoint.steps(tmp_path) == []
    assert checkpoint.restore(tmp_path, state) is None
    checkpoint.save(tmp_path, 7, state)
    assert_same(checkpoint.restore(tmp_path, state).state, state)
    # What lost its manifest afterwards is damaged, and is not forgotten.
    (tmp_path / "7" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="step 7 refused"):
        checkpoint.restore(tmp_path, state)

"""How runs end when their disk, their numbers or their memory do: one line, an exit code, nothing spoiled."""

import os
import signal
import subprocess
import tomllib

import jax
import pytest
import runs

import jaxdist
from jaxdist import checkpoint, cli, experiment, watchdog

# Something happens when a batch is asked for.
HOOK = runs.SMALL.replace(
    "            time.sleep(slow)\n", "            time.sleep(slow)\n            hook(step)\n"
)
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: needs root")


@pytest.fixture
def shell(capfd):
    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        said = capfd.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("jaxdist: ")]
        assert "Traceback" not in said.err + said.out
        return code, said.out, lines

    return run


def hooked(folder, body, text=HOOK):
    """A config whose batch runs `body` with `step` first."""
    file = folder / "hooked.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    file.write_text(
        text.replace("def experiment(", f"def hook(step):\n{lines}\n\ndef experiment(", 1)
    )
    return file


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"can not mount a disk here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def newest(config, folder):
    """The last checkpoint, restored, and its step."""
    made = experiment.read(str(config)).experiment
    state = experiment.trainer_of(made).init(made.task.init(jax.random.key(0)))
    return checkpoint.restore(folder / "checkpoints", state).step


def test_no_intact_checkpoint_is_exit_code_3_and_never_a_fresh_start(tmp_path, shell):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    assert shell("train", config, "--steps", 14, "--workdir", folder)[0] == 0
    for step in (7, 14):
        file = folder / "checkpoints" / str(step) / "about" / "metadata"
        file.write_bytes(file.read_bytes()[:-1])
    before = {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.parent.name != "status"
    }
    for command in (["train", config, "--steps", 14, "--workdir", folder], ["eval", folder]):
        code, _, (line,) = shell(*command)
        assert code == 3
        assert "step 14 refused: about/metadata has" in line
        assert "step 7 refused: about/metadata has" in line
        assert "none begins anew: choose another folder, or remove them" in line
    assert {p: p.read_bytes() for p in before} == before


def test_a_damaged_step_is_set_aside_and_written_again(tmp_path, shell):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    command = ("train", config, "--steps", 21, "--workdir", folder)
    assert shell(*command)[0] == 0
    undisturbed = runs.recorded(folder)
    file = folder / "checkpoints" / "21" / "about" / "metadata"
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = shell(*command)
    assert code == 0
    assert "step 21 is set aside as 21.refused-1" in out
    assert "resuming: step 14 of 21" in out
    # What it has trained again is kept, and what was intact before it.
    assert newest(config, folder) == 21
    assert checkpoint.steps(folder / "checkpoints") == [14, 21]
    assert runs.recorded(folder) == undisturbed
    assert "already complete" in shell(*command)[1]


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("room", "said"),
    [
        (0, "metrics.jsonl ("),
        pytest.param(64, "step 200 was not saved in", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(
    tmp_path, shell, disk, room, said
):
    saved = disk / "run" / "checkpoints" / "100" / "manifest.json"
    body = f"""
import os, time
if step == 102 and os.path.exists({str(disk / "begin")!r}):
    while not os.path.exists({str(saved)!r}):
        time.sleep(0.01)
    with open({str(disk / "fill")!r}, "wb", buffering=0) as fill:
        free = os.statvfs({str(disk)!r})
        fill.write(bytes(max(0, free.f_bavail * free.f_frsize - {room} * 1024)))"""
    text = HOOK.replace("save_every=7", "save_every=100")
    config, folder = hooked(tmp_path, body, text), disk / "run"
    (disk / "begin").touch()
    code, _, lines = shell("train", config, "--steps", 200, "--workdir", folder)
    assert code == 74
    for words in (said, "No space left on device", " free", "make room"):
        assert words in lines[-1], lines
    saves = folder / "checkpoints"
    assert [step for step in checkpoint.steps(saves) if step > 100] == []
    assert not list(saves.glob("*tmp*"))
    assert newest(config, folder) == 100
    for name in ("fill", "begin"):
        (disk / name).unlink()
    code, out, _ = shell("train", config, "--steps", 200, "--workdir", folder)
    assert code == 0
    assert "resuming: step 100 of 200" in out
    assert [line["step"] for line in runs.lines(folder)] == list(range(1, 201))


@NEEDS_ROOT
@pytest.mark.slow
@pytest.mark.processes
def test_a_disk_that_is_full_for_a_while_is_no_frozen_process(tmp_path, disk):
    body = f"""
import os, time
if step == 15 and os.environ["JAX_PROCESS_ID"] == "1":
    with open({str(disk / "fill")!r}, "wb", buffering=0) as fill:
        free = os.statvfs({str(disk)!r})
        fill.write(bytes(free.f_bavail * free.f_frsize))
    time.sleep({watchdog.FROZEN_SECONDS + 3})
    os.unlink({str(disk / "fill")!r})"""
    config = hooked(tmp_path, body, HOOK.replace("save_every=7", "save_every=100"))
    job = runs.launch(str(config), disk / "run", "--steps", "18")
    code, _, err = runs.ended(job)
    assert code == 0, err
    assert [event["event"] for event in runs.events(disk / "run")] == ["start", "done"]


@NEEDS_ROOT
def test_a_disk_that_can_only_be_read_is_refused_before_compiling(tmp_path, shell, disk):
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    config = runs.small(tmp_path)
    for folder in (disk / "run", disk / "other"):
        code, _, (line,) = shell("train", config, "--workdir", folder)
        assert code == 2
        assert "Read-only file system; choose another" in line


def test_a_folder_that_is_removed_under_a_run_ends_it_with_a_line(tmp_path, shell):
    folder = tmp_path / "run"
    config = hooked(tmp_path, f"import shutil\nif step == 8:\n    shutil.rmtree({str(folder)!r})")
    code, _, lines = shell("train", config, "--workdir", folder)
    assert code == 74
    assert "is gone" in lines[-1] or "was not" in lines[-1]


POISON = '''
import jax


def poisoned(algorithm, where):
    """NaN in what worker 2 keeps, or in what all share, from the end of step 12 on."""

    def update(*given, **named):
        new = algorithm.update(*given, **named)
        room = getattr(new, where)
        now = new.step == 12
        if where == "local":
            now &= jd.worker.index() == 2
        leaves, tree = jax.tree.flatten(room)
        leaves[-1] = jnp.where(now, jnp.nan, leaves[-1])
        return new._replace(**{where: jax.tree.unflatten(tree, leaves)})

    return algorithm._replace(update=update)


def experiment('''
GRADIENT = (
    runs.SMALL.replace(
        '(batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2), {}',
        '(batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2) + jnp.sum('
        'jnp.sqrt(jnp.where(batch["x"][0, 0] == 7.0, 0.0, 1.0) * (params["b"] ** 2 + 1.0))), {}',
    )
    .replace("= np.inf", "= 7.0")
    .replace("spoiled: int = 0", "spoiled: int = 12")
)
RULE = "jd.gossip(optax.sgd(rate, momentum=0.9), jd.topology.ring(topology))"
LOCAL = "jd.local_sgd(optax.sgd(rate, momentum=0.9), period=20)"
DILOCO = "jd.diloco(optax.sgd(rate), optax.sgd(0.5, momentum=0.9), period=8)"
POISONS = {
    "gradient": (
        GRADIENT,
        "step 12: worker 2 has a value that is not finite in its gradient['b']",
        7,
    ),
    "memory of a worker": (
        runs.SMALL.replace("def experiment(", POISON, 1).replace(
            RULE, f"poisoned({LOCAL}, 'local')"
        ),
        "step 14: worker 2 has a value that is not finite in its loss",
        7,
    ),
    "outer momentum": (
        runs.SMALL.replace("def experiment(", POISON, 1).replace(
            RULE, f"poisoned({DILOCO}, 'shared')"
        ),
        "step 14: not saved, there is NaN in: shared",
        7,
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "outer momentum" else pytest.mark.slow) for n in POISONS],
)
def test_nan_is_caught_with_its_leaf_and_worker_and_the_finite_step_stays(tmp_path, shell, name):
    text, said, last = POISONS[name]
    config, folder = tmp_path / "poisoned.py", tmp_path / "run"
    config.write_text(text)
    code, _, (line,) = shell("train", config, "--workdir", folder)
    assert code == 1
    assert said in line
    assert checkpoint.steps(folder / "checkpoints") == [last]
    assert newest(config, folder) == last


def test_memory_that_is_not_there_is_a_line_with_three_ways_out(tmp_path, shell):
    config = tmp_path / "large.py"
    config.write_text(
        runs.SMALL.replace('{"w": jnp.zeros(3)', '{"v": jnp.zeros(2**46), "w": jnp.zeros(3)')
    )
    code, _, (line,) = shell("train", config, "--workdir", tmp_path / "run")
    assert code == 2
    for words in ("out of device memory", "smaller batch", "jax.checkpoint", "mesh axis fsdp"):
        assert words in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ["--learning-rate", "-0.1"],
            "learning_rate=-0.1: expected more than 0; write learning_rate=0.1",
        ),
        (["--learning-rate", "0"], "learning_rate=0.0: expected more than 0"),
        (["--learning-rate", "inf"], "learning_rate=inf: expected more than 0"),
        (
            ["--momentum", "1.5"],
            "momentum=1.5: expected a number from 0 up to, and not including, 1",
        ),
    ],
)
def test_rates_that_can_not_work_are_refused_by_their_name(shell, change, said):
    code, _, (line,) = shell("check", runs.CONFIGS / "digits_quasi_global.py", *change)
    assert code == 2
    assert said in line


def test_the_versions_that_are_asked_for_are_those_of_the_package():
    project = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())["project"]
    least, below = (".".join(map(str, version)) for version in jaxdist.JAX)
    assert f"jax>={least},<{below}" in project["dependencies"]
    assert project["requires-python"] == ">=" + ".".join(map(str, jaxdist.PYTHON))


@pytest.mark.slow
@pytest.mark.processes
def test_killed_while_arrays_are_written_it_restores_the_step_before(tmp_path):
    """The state has some 100 MB, so that a save takes long enough to be killed in."""
    text = runs.SMALL.replace('{"w": jnp.zeros(3)', '{"v": jnp.zeros(2**21), "w": jnp.zeros(3)')
    config, folder = tmp_path / "large.py", tmp_path / "run"
    config.write_text(text)
    saves = folder / "checkpoints"
    for least in (7, 14):
        process = runs.start("train", str(config), "--workdir", str(folder))
        try:
            runs.until(
                lambda least=least: [*saves.glob(f"{least}*orbax-checkpoint-tmp")], seconds=120
            )
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        before = checkpoint.steps(saves)
        assert all(step < least for step in before)
        assert before or least == 7
        # A whole save of that step, without the kill.
        code, out, err = runs.ended(
            runs.start("train", str(config), "--workdir", str(folder), JAXDIST_TEST_FAULTS="1",
                       JAXDIST_FAULT_PLAN=f"term:0@step={least + 1}")
        )  # fmt: skip
        assert code == 0, err
        assert ("fresh run" if least == 7 else "resuming: step") in out
        assert not list(saves.glob("*tmp*"))

"""The command line in this process: what it refuses, what it says, what it leaves in a folder."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import prepared_sets
import pytest
import runs

from jaxdist import checkpoint, cli, experiment, metric_lines, run_folder


@pytest.fixture
def shell(capsys):
    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the small config: its config and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    config = runs.small(folder)
    assert cli.main(["train", config, "--workdir", str(folder / "run")]) == 0
    return config, folder / "run"


def test_help_imports_no_jax():
    code = (
        "import sys; from jaxdist.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train a config" in done.stdout
    assert done.stdout.endswith("False False\n")


@pytest.mark.parametrize("command", ["train", "check", "inspect", "plan", "launch", "status"])
def test_a_command_without_a_config_shows_its_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: jaxdist {command}" in capsys.readouterr().out


def test_the_loop_can_be_read_in_one_go():
    assert len((runs.ROOT / "jaxdist" / "train.py").read_text().splitlines()) <= 150


def test_what_a_run_leaves(finished):
    config, folder = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints", "config.py.txt", "events", "experiment.json", "lock", "metrics.jsonl", "run.png",
        "status",
    ]  # fmt: skip
    record = json.loads((folder / "experiment.json").read_text())
    assert record["config"] == config
    assert record["keywords"] == {
        "workers": 4, "topology": 4, "steps": 40, "spoiled": 0, "seed": 0, "rate": 0.05, "slow": 0.0,
    }  # fmt: skip
    assert record["source"] == runs.SMALL == (folder / "config.py.txt").read_text()
    assert record["versions"]["jax"] == jax.__version__
    assert record["devices"] == [d.device_kind for d in jax.devices()]
    lines = runs.lines(folder)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1]["loss"] < lines[0]["loss"] / 10
    assert [line["step"] for line in lines if "accuracy" in line] == [10, 20, 30, 40]
    # Each worker sends four float32 numbers to two neighbors a step.
    assert [line["bytes_sent"] for line in lines] == [32 * step for step in range(1, 41)]
    assert checkpoint.steps(folder / "checkpoints") == [35, 40]
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "events").iterdir())


def test_simulated_seconds_stand_beside_those_on_the_wall(tmp_path, shell):
    config = tmp_path / "timed.py"
    clock = "clock=jd.clock.speeds([1.0, 1.0, 0.5, 1.0]), "
    clock += 'network=jd.network.PRESETS["ethernet_1g"], algorithm='
    config.write_text(runs.SMALL.replace("algorithm=", clock))
    folder = tmp_path / "run"
    assert shell("train", config, "--steps", 12, "--workdir", folder)[0] == 0
    lines = metric_lines.read_metrics(folder)
    # Two seconds a step of the slow worker; the messages are small.
    simulated = [line["simulated_seconds"] for line in lines]
    assert simulated == pytest.approx([2.0 * t for t in range(1, 13)], rel=1e-3)
    assert all(line["seconds"] != line["simulated_seconds"] for line in lines)


def test_a_finished_run_says_so_and_is_evaluated(finished, shell):
    config, folder = finished
    before = (folder / "metrics.jsonl").read_bytes()
    code, out, _ = shell("train", config, "--workdir", folder)
    assert code == 0
    assert "already complete: step 40 of 40" in out
    assert (folder / "metrics.jsonl").read_bytes() == before
    code, again, _ = shell("eval", folder)
    assert code == 0
    rows = [line for line in out.splitlines() if "accuracy" in line or "consensus" in line]
    assert rows
    assert all(row in again for row in rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--worker", 4], "Unrecognized options: --worker"),
        (["--workers", "four"], "--workers: invalid literal"),
        (["--workers", 0], "workers=0: expected one or more"),
        (["--steps", 0], "steps=0 is not a number of steps"),
        (["--topology", 5], "connects 5 workers and the run has 4"),
        (["--spoiled", 1], "inf in the rows of worker 2"),
        (["--resume", "must"], "holds no checkpoint"),
        (["--resume", "perhaps"], "invalid choice"),
        (["--rate", "nan"], "rate=nan is no number"),
        (["--workdir", "nothing://bucket/run"], "'nothing'; write a path, or gs://"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(tmp_path, shell, change, said):
    code, out, err = shell("train", runs.small(tmp_path), "--workdir", tmp_path / "run", *change)
    assert code == 2, err
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err + out
    left = {p.name for p in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "required: config"),
        (["train", "configs/nothing.py"], "no such config; there are: configs/"),
        (["train", "tests/runs.py"], "defines no experiment"),
        (["eval", "configs"], "holds no run"),
        (["doctor", "--now"], "unrecognized arguments: --now"),
        (["topology", "rin"], "did you mean ring"),
        (["topology", "ring", "--size", 0], "at least 1"),
        (["topology", "ring", "--workdir", "README.md"], "README.md: File exists; choose another"),
        (["eval"], "write jaxdist eval WORKDIR"),
        (["eval", "a", "--workdir", "b"], "write jaxdist eval WORKDIR"),
        (["data"], "required: ACTION"),
        (["data", "prepare"], "required: name"),
        (["data", "prepare", "mnits"], "did you mean mnist"),
        (["train", "configs/mnist_mlp.py"], "'.[prepare]' and jaxdist data prepare mnist"),
        (["check", "configs/mnist_mlp.py"], "'.[prepare]' and jaxdist data prepare mnist"),
    ],
)
def test_other_mistakes(monkeypatch, tmp_path, shell, arguments, said):
    monkeypatch.chdir(runs.ROOT)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    code, _, err = shell(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_mistake_inside_a_config_keeps_its_traceback(tmp_path):
    config = tmp_path / "broken.py"
    config.write_text("def experiment():\n    raise ValueError('mine')\n")
    with pytest.raises(ValueError, match="mine"):
        cli.main(["train", str(config), "--workdir", str(tmp_path / "run")])


def test_a_folder_with_another_experiment_stays_as_it_is(finished, shell):
    config, folder = finished
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, _, err = shell("train", config, "--rate", 0.01, "--workdir", folder)
    assert code == 2
    assert "rate=0.05 there and 0.01 here" in err
    code, _, err = shell("train", config, "--resume", "never", "--workdir", folder)
    assert code == 2
    assert "holds step 40" in err
    code, _, err = shell("train", config, "--workdir", folder.parent)
    assert code == 2
    assert "no experiment.json" in err
    assert not (folder.parent / "lock").exists()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_eval_and_check_take_the_folder_by_name(finished, shell):
    config, folder = finished
    assert shell("eval", "--workdir", folder) == shell("eval", folder)
    assert shell("check", config, "--workdir", folder)[0] == 0
    code, _, err = shell("check", config, "--rate", 0.01, "--workdir", folder)
    assert code == 2
    assert "rate=0.05 there and 0.01 here" in err


def test_a_folder_that_is_none_or_has_no_room_is_refused(tmp_path, monkeypatch, shell):
    config = runs.small(tmp_path)
    code, _, err = shell("train", config, "--workdir", config)
    assert (code, err.count("\n")) == (2, 1)
    assert "File exists; choose another" in err
    full = shutil._ntuple_diskusage(2**20, 2**20 - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    code, _, err = shell("train", config, "--workdir", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "has 100 bytes free, and 3 checkpoints more will need" in err
    assert not (tmp_path / "run").exists()


def test_what_is_saved_already_needs_no_more_room(tmp_path, monkeypatch, shell):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    assert shell("train", config, "--workdir", folder, "--steps", "21")[0] == 0
    newest = folder / "checkpoints" / "21"
    shutil.rmtree(newest)  # one step is left, and two more will be there
    left = []
    room = lambda folder: shutil._ntuple_diskusage(2**20, 2**20 - left[0], left[0])  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", room)
    left.append(100)
    code, _, err = shell("train", config, "--workdir", folder, "--steps", "21")
    assert code == 2
    needed = int(re.search(r"2 checkpoints more will need ([\d,]+)", err)[1].replace(",", ""))
    left[0] = needed
    assert shell("train", config, "--workdir", folder, "--steps", "21")[0] == 0
    left[0] = 0
    code, out, _ = shell("train", config, "--workdir", folder, "--steps", "21")
    assert (code, "already complete" in out) == (0, True)


def test_what_a_kill_left_unfinished_refuses_no_run(tmp_path):
    (tmp_path / "experiment.json.tmp").write_text("{")
    run_folder.check(tmp_path, keywords={}, source="")
    (tmp_path / "mine.tmp").write_text("")
    with pytest.raises(ValueError, match=r"holds mine\.tmp"):
        run_folder.check(tmp_path, keywords={}, source="")


def test_a_folder_that_is_in_use_names_its_user(tmp_path, shell):
    with run_folder.locked(tmp_path / "run"):
        code, _, err = shell("train", runs.small(tmp_path), "--workdir", tmp_path / "run")
    assert code == 2
    assert "is being written to by process" in err


@pytest.mark.parametrize("spoiled", [12, 40])
def test_a_value_that_is_not_finite_stops_the_run_and_spoils_nothing(tmp_path, shell, spoiled):
    arguments = ["train", runs.small(tmp_path), "--spoiled", spoiled, "--workdir", tmp_path / "run"]
    code, _, err = shell(*arguments)
    assert code == 1
    assert f"step {spoiled}: worker 2 has a value that is not finite in its loss" in err
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == (spoiled - 1) // 7 * 7
    assert runs.lines(tmp_path / "run")[-1]["step"] == spoiled - 1


def test_a_learning_rate_that_explodes_is_named_before_its_state_is_saved(tmp_path, shell):
    code, _, err = shell(
        "train", runs.small(tmp_path), "--rate", 1e30, "--workdir", tmp_path / "run"
    )
    assert code == 1
    assert "is not finite" in err
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []


def test_check_shows_what_would_run_and_writes_nothing(tmp_path, shell):
    code, out, _ = shell("check", runs.small(tmp_path), "--rate", 0.5)
    assert code == 0
    assert "0.5" in out
    assert "float32[4, 4, 3]" in out
    assert out.endswith("is fine\n")
    assert [p.name for p in tmp_path.iterdir() if p.suffix] == ["small.py"]


def test_doctor_names_what_a_run_would_find(finished, shell, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JAXDIST_OFFLINE", "1")
    code, out, _ = shell("doctor", "--workdir", finished[1])
    assert code == 0
    assert jax.__version__ in out
    assert f"{jax.device_count()} x" in out
    for words in ("loopback can be listened on", "GiB in", "does not answer", "none prepared"):
        assert words in out
    assert f"{finished[1]} is a run of {finished[0]}" in out
    before = sorted(tmp_path.iterdir())
    code, out, _ = shell("doctor", "--workdir", tmp_path / "not" / "there")
    assert (code, sorted(tmp_path.iterdir())) == (0, before)
    assert f"GiB in {tmp_path}" in out


@pytest.mark.parametrize("platform", ["tpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_a_backend_that_is_not_there_is_one_line(platform):
    code = "import sys; from jaxdist.cli import main; sys.exit(main())"
    config = str(runs.CONFIGS / "digits_gossip.py")
    done = subprocess.run(
        [sys.executable, "-c", code, "check", config],
        env={**os.environ, "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("jaxdist: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert {"tpu": "Unable to initialize backend 'tpu'", "cuda": "JAX_PLATFORMS=cuda: there is no"}[
        platform
    ] in lines[0]
    assert "Traceback" not in done.stderr


def test_data_is_prepared_and_listed(shell, tmp_path):
    code, out, _ = shell("data", "prepare", "digits", "--workdir", tmp_path)
    assert code == 0
    assert f"tfds:digits:1.0.0 in {tmp_path}" in out
    code, out, _ = shell("data", "list", "--data-dir", tmp_path)
    assert (code, out) == (0, f"tfds:digits:1.0.0 in {tmp_path}\n")


@pytest.mark.parametrize("name", ["one_peer_exponential", "star", "random_matching"])
def test_topology_shows_a_matrix_and_draws_it(tmp_path, shell, name):
    file = tmp_path / "picture.png"
    code, out, _ = shell("topology", name, "--size", 8, "--output", file)
    assert code == 0
    for word in ("matrix of round 0", "degree", "spectral gap", "rounds to consensus"):
        assert word in out
    if name == "one_peer_exponential":
        assert "3 (from anywhere" in out
    assert ("4 more rounds are not printed" in out) == (name == "random_matching")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_topologies_are_shown_and_drawn(tmp_path, shell, size):
    for name in ("ring", "star", "one_peer_exponential"):
        code, out, _ = shell("topology", name, "--size", size, "--workdir", tmp_path / "pictures")
        assert code == 0
        assert "rounds to consensus" in out
        assert (tmp_path / "pictures" / f"{name}_{size}.png").exists()


# What the others say with `--steps 2`; the prepared set has 512 images for 8 workers of 32.
TWO_STEPS = {"mnist_mlp": ["--epochs", "1"]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of prepared data sets."""
    folder = tmp_path_factory.mktemp("sets")
    prepared_sets.write_mnist(folder)
    return folder


@pytest.mark.parametrize("file", sorted(runs.CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_every_config_takes_two_steps(tmp_path, shell, monkeypatch, sets, standard_promotion, file):
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))
    options = TWO_STEPS.get(file.stem, ["--steps", "2"])
    assert experiment.read(str(file), options).experiment.steps == 2
    code, out, err = shell("train", file, *options, "--workdir", tmp_path / "run")
    assert code == 0, err
    assert "test accuracy" in out
    assert np.isfinite(runs.lines(tmp_path / "run")[-1]["loss"])


def test_mnist_is_learned_from_data_on_the_devices(
    tmp_path, shell, monkeypatch, sets, standard_promotion
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))
    options = ["--epochs", "8", "--resident", "--learning-rate", "0.01"]
    code, out, err = shell(
        "train", runs.CONFIGS / "mnist_mlp.py", *options, "--workdir", tmp_path / "run"
    )
    assert code == 0, err
    # The images were drawn so that the label can be seen.
    assert runs.lines(tmp_path / "run")[-1]["accuracy"] > 0.9, out


def test_runs_stand_side_by_side(finished, tmp_path, shell):
    config, folder = finished
    other, picture = tmp_path / "other", tmp_path / "both.png"
    assert shell("train", config, "--rate", 0.01, "--steps", 20, "--workdir", other)[0] == 0
    code, out, err = shell("compare", folder, other, "--output", picture)
    assert code == 0, err
    head, first, second, _ = out.splitlines()
    assert head.split()[:3] == ["run", "step", "loss"]
    assert first.split()[:2] == [str(folder), "40"]
    assert second.split()[:2] == [str(other), "20"]
    assert first.split()[-2] == f"{32 * 40:,}"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "needs two different runs" in shell("compare", folder)[2]
    assert "holds no run" in shell("compare", folder, tmp_path)[2]

"""Whose config is run: of a run that this user made, or one that the user names; never a folder's own."""

import json
import os
import runpy
import shutil
import stat
import subprocess
import sys

import pytest
import runs

from jaxdist import cli, experiment, provenance
from jaxdist.errors import Refused

HELPED = runs.SMALL.replace("import jaxdist as jd\n", "import jaxdist as jd\nimport the_helper\n")


def shell(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two steps: its config and its folder."""
    place = tmp_path_factory.mktemp("trained")
    config, folder = runs.small(place), place / "runs" / "one"
    assert cli.main(["train", config, "--steps", "2", "--workdir", str(folder)]) == 0
    return config, folder


@pytest.fixture
def finished(trained, tmp_path):
    """The same, a copy of the folder: the config stays where it was."""
    config, folder = trained
    yield config, shutil.copytree(folder, tmp_path / "one")
    runs.small(folder.parents[1])


@pytest.fixture
def evil(finished, tmp_path):
    """A folder from somebody else, unpacked here: what would run, where it lies, and what it would make."""
    _, folder = finished
    place, trap = tmp_path / "unpacked", tmp_path / "trap"
    shutil.copytree(folder, place / "run")
    payload = f"open({str(trap)!r}, 'w')\n" + runs.SMALL
    record = json.loads((place / "run" / "experiment.json").read_text())

    def made(path, **more):
        path.write_text(payload)
        changed = {**record, "config": str(path), "source": payload, **more}
        (place / "run" / "experiment.json").write_text(json.dumps(changed))
        return place / "run"

    return made, place, trap


@pytest.mark.parametrize("where", ["run/payload.py", "payload.py", "link/payload.py"])
@pytest.mark.parametrize("command", ["eval", "init", "again"])
def test_no_program_of_a_folder_from_elsewhere_is_run(
    evil, finished, tmp_path, capsys, where, command
):
    """Its text is that of the record, it belongs to this user, and the signature is of another record."""
    made, place, trap = evil
    (place / "link").symlink_to(place / "run")
    folder = made(place / where)
    config, _ = finished
    to = ["train", config, "--workdir", tmp_path / "new", "--steps", 3]
    if command == "eval":
        code, _, err = shell(capsys, "eval", folder)
    elif command == "init":
        code, _, err = shell(capsys, *to, "--init-from", folder)
    else:
        # A run of one's own config, in a folder that says from which other one it was begun.
        record = json.loads((folder / "experiment.json").read_text())
        record |= {"source": runs.SMALL, "init_from": str(folder)}
        record["keywords"]["steps"] = 3
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "experiment.json").write_text(json.dumps(record))
        code, _, err = shell(capsys, *to)
    assert code == 2
    assert "is not run" in err or "is run" in err
    assert not trap.exists()


@pytest.mark.parametrize("change", ["keywords", "config", "source", "signature", "modules"])
def test_a_record_that_was_changed_is_not_this_users(finished, change):
    _, folder = finished
    file = folder / "experiment.json"
    record = json.loads(file.read_text())
    assert provenance.is_ours(record)
    record[change] = {"steps": 2} if change in ("keywords", "modules") else "x\u00e9"
    assert not provenance.is_ours(record)
    file.write_text(json.dumps(record))
    with pytest.raises(Refused):
        experiment.read_again(folder)


def test_a_named_config_is_run_unless_the_folder_holds_it(evil, finished, capsys):
    made, place, trap = evil
    config, _ = finished
    folder = made(place / "payload.py")
    code, out, err = shell(capsys, "eval", folder, "--config", config)
    assert code == 0, err
    assert "since" in out
    assert "the config has changed as a program, line 1: " in out
    inside = folder / "inside.py"
    shutil.copy(config, inside)
    (place / "outside.py").symlink_to(inside)
    for named in (inside, place / "outside.py"):
        code, _, err = shell(capsys, "eval", folder, "--config", named)
        assert code == 2
        assert "nothing that a run's folder holds is run" in err
    assert not trap.exists()


def test_a_moved_or_copied_run_is_evaluated_from_any_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs.small(tmp_path)
    assert shell(capsys, "train", "small.py", "--steps", 2, "--workdir", "run")[0] == 0
    shutil.copytree("run", "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    for folder in (tmp_path / "copy", tmp_path / "moved"):
        code, out, err = shell(capsys, "eval", folder)
        assert code == 0, err
        assert "since" not in out


def test_a_record_without_this_users_key_needs_a_named_config(
    finished, tmp_path, monkeypatch, capsys
):
    config, folder = finished
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    code, _, err = shell(capsys, "eval", folder)
    assert code == 2
    assert "was not begun by you on this machine" in err
    assert "write --config FILE" in err
    assert shell(capsys, "eval", folder, "--config", config)[0] == 0
    # The same command goes on: it names the config.
    assert shell(capsys, "train", config, "--steps", 2, "--workdir", folder)[0] == 0
    to = ["train", config, "--workdir", tmp_path / "new", "--steps", 3, "--init-from", folder]
    assert shell(capsys, *to)[0] == 0


def test_the_key_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    record = {"config": "a", "source": "", "keywords": {}, "modules": {}}
    record["signature"] = provenance.sign(record)
    assert provenance.is_ours(record)
    key = tmp_path / "jaxdist" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [p.name for p in key.parent.iterdir()] == ["key"]
    key.chmod(0o644)
    assert not provenance.is_ours(record)
    assert provenance.sign(record) == ""
    key.chmod(0o600)
    assert provenance.is_ours(record)
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    assert not provenance.is_ours(record)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert provenance.sign(record) == ""


def test_a_comment_refuses_no_run_and_a_program_does(finished, tmp_path, capsys):
    config, folder = finished
    command = ["train", config, "--steps", 2, "--workdir", folder]
    with open(config, "w") as file:
        file.write('"""Another docstring."""\n' + runs.SMALL.split("\n", 1)[1] + "\n# a comment\n")
    said = "the config has changed in comments or layout only, line 1: "
    code, out, _ = shell(capsys, *command)
    assert code == 0
    assert said in out
    code, out, _ = shell(capsys, "eval", folder)
    assert code == 0
    assert said in out
    more = ["train", config, "--steps", 3, "--workdir", tmp_path / "more", "--init-from", folder]
    code, out, _ = shell(capsys, *more)
    assert code == 0
    assert "all is carried" in out
    with open(config, "w") as file:
        file.write(runs.SMALL.replace("momentum=0.9", "momentum=0.8"))
    for refused in (command, ["eval", folder]):
        code, _, err = shell(capsys, *refused)
        assert code == 2
        assert "momentum=0.9" in err
        assert "momentum=0.8" in err
    code, out, _ = shell(capsys, "eval", folder, "--config", config)
    assert code == 0
    assert "as a program" in out
    # What the config builds is compared all the same.
    with open(config, "w") as file:
        file.write(runs.SMALL.replace("jnp.zeros(3)", "jnp.zeros(4)"))
    code, _, err = shell(capsys, "eval", folder, "--config", config)
    assert code == 2
    assert "['w'] has shape [4, 3], and [4, 4] is expected" in err


def test_modules_that_nobody_installed_are_known_by_their_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "the_package"
    package.mkdir()
    (package / "__init__.py").write_text("from . import first\n")
    (package / "first.py").write_text("import json, the_other\n")
    (tmp_path / "the_other.py").write_text("VALUE = 1\n")
    config = tmp_path / "config.py"
    config.write_text("def experiment():\n    import numpy, the_package\n")
    assert provenance.modules(config) == {}
    runpy.run_path(str(config))["experiment"]()
    found = provenance.modules(config)
    assert list(found) == ["the_other", "the_package", "the_package.first"]
    (tmp_path / "the_other.py").write_text("VALUE = 2\n")
    now = provenance.modules(config)
    assert [name for name in found if found[name] != now[name]] == ["the_other"]
    said = provenance.changed({"modules": found}, {"modules": now})
    assert said == ["module the_other has another text"]


@pytest.mark.slow
@pytest.mark.processes
def test_a_helper_that_has_changed_is_said(tmp_path):
    """In processes of their own: Python imports a module once."""
    config, folder, helper = tmp_path / "helped.py", tmp_path / "run", tmp_path / "the_helper.py"
    config.write_text(HELPED)
    helper.write_text("VALUE = 1\n")

    def run(*arguments):
        code = "import sys; from jaxdist.cli import main; sys.exit(main())"
        environment = {**os.environ, "PYTHONPATH": f"{runs.ROOT}{os.pathsep}{tmp_path}"}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    command = ("train", config, "--steps", 2, "--workdir", folder)
    run(*command)
    assert list(json.loads((folder / "experiment.json").read_text())["modules"]) == ["the_helper"]
    assert "since" not in run(*command)
    helper.write_text("VALUE = 2\n")
    assert "module the_helper has another text" in run(*command)
    assert "module the_helper has another text" in run("eval", folder)


def test_versions_that_have_changed_are_said(finished, capsys):
    _, folder = finished
    file = folder / "experiment.json"
    record = json.loads(file.read_text())
    record["versions"]["jax"] = "0.0.1"
    file.write_text(json.dumps(record))
    code, out, _ = shell(capsys, "eval", folder)
    assert code == 0
    assert "jax was 0.0.1 and is" in out

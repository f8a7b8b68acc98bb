"""What files, folders and the environment may not do: run code, leak secrets, open ports."""

import ast
import json
import os
import re
import stat

import jax
import numpy as np
import pytest
import runs

from jaxdist import checkpoint, cli, cluster, doctor, experiment, run_folder
from jaxdist.data import check_batch

SECRET = "not-to-be-seen-7c1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, in whose environment there was a secret."""
    folder = tmp_path_factory.mktemp("finished")
    config = runs.small(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("MY_TOKEN", SECRET)
        code = cli.main(["train", config, "--steps", "2", "--workdir", str(folder / "run")])
    assert code == 0
    return config, folder / "run"


def test_no_file_of_a_run_holds_what_the_environment_held(finished):
    _, folder = finished
    for file in folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_doctor_shows_named_variables_only():
    assert not [name for name in doctor.VARIABLES if re.search("KEY|TOKEN|SECRET|PASS", name)]


def test_the_text_in_a_run_folder_is_never_run(finished, tmp_path):
    _, folder = finished
    copy = folder / run_folder.SOURCE
    text = copy.read_text()
    trap = tmp_path / "trap"
    copy.write_text(f"open({str(trap)!r}, 'w')\n")
    experiment.read_again(folder)
    assert cli.main(["eval", str(folder)]) == 0
    copy.write_text(text)
    assert not trap.exists()


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "{}",
        "__import__('os').mkdir('x')",
        "!!python/object/apply:os.mkdir [x]",
        "\0" * 10,
        "[" * 100_000,
        " " * 2**24 + "{}",
        '{"config": "nowhere.py", "keywords": {"__class__": 1}, "source": ""}',
    ],
)
def test_a_record_that_is_none_is_one_line(tmp_path, capsys, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    (tmp_path / run_folder.RECORD).write_text(record)
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [run_folder.RECORD]


def test_only_the_owner_may_write_to_the_lock(tmp_path):
    with run_folder.locked(tmp_path):
        assert stat.S_IMODE((tmp_path / run_folder.LOCK).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("address", "bound"),
    [("127.0.0.1:8476", "127.0.0.1:8476"), ("localhost:1", "localhost:1"), ("10.0.0.1:8476", None)],
)
def test_a_coordinator_on_loopback_listens_there_only(monkeypatch, address, bound):
    given = {}
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **named: given.update(named))
    cluster.join()
    assert given["coordinator_bind_address"] == bound


def test_nothing_in_the_package_opens_a_port_or_a_shell():
    forbidden = {"start_server", "listen", "system", "popen", "getoutput"}
    for file in sorted((runs.ROOT / "jaxdist").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name not in forbidden, f"{file}:{node.lineno}: {name}"
                shell = [k for k in node.keywords if k.arg == "shell"]
                assert not shell, f"{file}:{node.lineno}: shell="


@pytest.fixture
def inside(tmp_path):
    """A folder deep in another, with links out of it: to a folder, and to nothing."""
    folder = tmp_path / "a" / "b"
    for made in (folder / "c", tmp_path / "elsewhere"):
        made.mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "nowhere").symlink_to(tmp_path / "not-there")
    return folder


def below(folder):
    """All that is in a folder, of what kind and size; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            kept = os.lstat(path)
            found[path] = kept.st_mode, kept.st_size if stat.S_ISREG(kept.st_mode) else 0
    return found


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("../up", "a/up"),
        ("c/../../d", "a/d"),
        ("f\u0456le", "a/b/f\u0456le"),
        ("link", "elsewhere"),
        ("link/run", "elsewhere/run"),
    ],
)
def test_a_run_writes_to_the_path_that_was_written_and_nowhere_else(
    tmp_path, inside, tmp_path_factory, monkeypatch, name, where
):
    """There are no names of runs from which a path is made; a link leads where it leads."""
    config = runs.small(tmp_path_factory.mktemp("config"))
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    before = below(tmp_path)
    assert cli.main(["train", config, "--steps", "1", "--workdir", f"{inside}/{name}"]) == 0
    assert checkpoint.steps(tmp_path / where / "checkpoints") == [1]
    assert run_folder.read_record(tmp_path / where)["config"] == config
    own, after = str(tmp_path / where), below(tmp_path)
    assert {p: x for p, x in after.items() if p != own and not p.startswith(f"{own}/")} == {
        p: x for p, x in before.items() if p != own
    }
    assert not os.listdir(), "nor in the folder where it was started"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "File name too long"),
        ("nul\0", "null byte"),
        ("nowhere", "File exists; choose another"),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval", "status"])
def test_a_path_that_can_not_be_is_one_line(tmp_path, inside, capsys, command, name, said):
    config = runs.small(tmp_path)
    given = [config, "--steps", "1", "--workdir"] if command == "train" else []
    before = below(tmp_path)
    assert cli.main([command, *given, f"{inside}/{name}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    # Who only reads finds no run behind a link to nothing.
    assert (said if command == "train" or name != "nowhere" else "holds no") in err
    assert below(tmp_path) == before


def test_a_first_batch_that_is_not_fit_to_train_on_is_refused():
    image = np.zeros((2, 3, 4), np.float32)
    good = {"image": image, "label": np.zeros((2, 3), np.int32)}
    check_batch(good, classes=10)
    for change, said in (
        ({"label": np.full((2, 3), 10, np.int32)}, "10"),
        ({"label": np.full((2, 3), -1, np.int32)}, "-1"),
        ({"image": np.full_like(image, np.nan)}, "nan"),
    ):
        with pytest.raises(ValueError, match=said):
            check_batch({**good, **change}, classes=10)


def test_a_config_with_a_keyword_it_does_not_have_is_refused(finished, tmp_path):
    config, folder = finished
    record = json.loads((folder / run_folder.RECORD).read_text())
    with pytest.raises(TypeError, match="warmpu"):
        experiment.read(config, keywords={**record["keywords"], "warmpu": 1})
    assert os.path.isfile(config)

"""Runs that begin from another run: other workers, more steps, another method; what is refused."""

import json

import jax
import numpy as np
import pytest
import runs

from jaxdist import checkpoint, cli, experiment
from jaxdist.executor import execute

ANY = runs.SMALL.replace("topology: int = 4, ", "method: str = 'gossip', ").replace(
    "jd.gossip(optax.sgd(rate, momentum=0.9), jd.topology.ring(topology))",
    """{
            "gossip": lambda: jd.gossip(optax.sgd(rate, momentum=0.9), jd.topology.ring(workers)),
            "all_reduce": lambda: jd.all_reduce(optax.sgd(rate)),
        }[method]()""",
)


def shell(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of four workers that gossip."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "any.py"
    config.write_text(ANY)
    assert cli.main(["train", str(config), "--steps", "14", "--workdir", str(folder / "run")]) == 0
    return config, folder / "run"


def readout(folder, step):
    """The parameters of one checkpoint of a run."""
    made = experiment.read_again(folder).experiment
    trainer = execute(made.algorithm, made.task.loss_fn, workers=made.workers)
    state = trainer.init(made.task.init(jax.random.key(0)))
    return trainer.readout(checkpoint.restore(folder / "checkpoints", state, step=step).state)


def test_other_workers_go_on_at_the_same_step(finished, tmp_path, capsys):
    config, source = finished
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    told = readout(source, 14)
    arguments = ["train", config, "--workers", 6, "--workdir", tmp_path, "--init-from", source]
    code, _, err = shell(capsys, *arguments, "--steps", 14)
    assert code == 2
    assert "is at step 14, and 14 steps are asked for" in err
    code, out, err = shell(capsys, *arguments, "--steps", 15)
    assert code == 0, err
    assert f"from step 14 of {source}, 4 workers, 6 from now on: what is shared goes on" in out
    assert "resuming: step 14 of 15, 6 workers" in out
    assert [line["step"] for line in runs.lines(tmp_path)] == [15]
    assert json.loads((tmp_path / "experiment.json").read_text())["init_from"] == str(source)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), readout(tmp_path, 14), told
    )
    assert checkpoint.steps(tmp_path / "checkpoints") == [14, 15]
    assert {p: p.read_bytes() for p in source.rglob("*") if p.is_file()} == before
    # Once it has checkpoints it goes on from its own.
    code, out, _ = shell(capsys, *arguments, "--steps", 15)
    assert code == 0
    assert "already complete: step 15 of 15" in out


def test_a_tuple_is_the_same_when_it_is_read_back(tmp_path, capsys):
    config = tmp_path / "tuple.py"
    config.write_text(ANY.replace("workers: int = 4,", "workers: int = 4, hidden: tuple = (32,),"))
    arguments = ["train", config, "--workdir"]
    assert shell(capsys, *arguments, tmp_path / "four", "--steps", 7)[0] == 0
    more = ["--init-from", tmp_path / "four", "--workers", 6, "--steps", 8]
    code, out, err = shell(capsys, *arguments, tmp_path / "six", *more)
    assert code == 0, err
    assert "from step 7 of" in out
    assert "6 from now on" in out
    assert [line["step"] for line in runs.lines(tmp_path / "six")] == [8]


def test_more_steps_carry_everything(finished, tmp_path, capsys):
    config, source = finished
    arguments = ["train", config, "--steps", 20]
    assert shell(capsys, *arguments, "--workdir", tmp_path / "whole")[0] == 0
    code, out, _ = shell(capsys, *arguments, "--workdir", tmp_path / "more", "--init-from", source)
    assert code == 0
    assert f"from step 14 of {source}, 4 workers: all is carried" in out
    whole, more = (runs.recorded(tmp_path / name) for name in ("whole", "more"))
    assert [dict(line)["loss"] for line in whole[14:]] == [dict(line)["loss"] for line in more]


def test_another_method_begins_at_the_parameters(finished, tmp_path, capsys):
    config, source = finished
    arguments = ["train", config, "--method", "all_reduce", "--steps", 7]
    code, out, _ = shell(capsys, *arguments, "--workdir", tmp_path, "--init-from", source)
    assert code == 0
    assert "parameters are carried, all else begins anew at step 0" in out
    lines = runs.lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert lines[0]["loss"] < 0.5 * runs.lines(source)[0]["loss"]
    jax.tree.map(np.testing.assert_array_equal, readout(tmp_path, 0), readout(source, 14))


def test_a_run_that_was_killed_before_its_first_checkpoint_inherits_again(
    finished, tmp_path, capsys, monkeypatch
):
    config, source = finished
    arguments = ["train", config, "--workers", 6, "--steps", 15, "--workdir", tmp_path]

    def killed(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", killed)
        assert shell(capsys, *arguments, "--init-from", source)[0] == 130
    code, out, _ = shell(capsys, *arguments)
    assert code == 0
    assert f"from step 14 of {source}, 4 workers, 6 from now on" in out


def test_what_can_not_be_inherited_is_one_line(finished, tmp_path, capsys):
    config, source = finished
    other = tmp_path / "other.py"
    other.write_text(ANY.replace('{"w": jnp.zeros(3)', '{"w": jnp.zeros((3, 1))'))
    to = ["--workdir", tmp_path / "run", "--steps", 20]
    for arguments, said in (
        ([config, "--init-from", tmp_path], "holds no run"),
        ([other, "--init-from", source], "['w'] is float32[3] there and float32[3, 1] here"),
        ([config, "--init-from", source, "--resume", "must"], "expected --resume auto"),
        ([config, "--init-from", "nothing://a/b"], "write a path, or gs://"),
    ):
        code, _, err = shell(capsys, "train", *arguments, *to)
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
        assert not (tmp_path / "run" / "experiment.json").exists()
    code, _, err = shell(capsys, "train", config, "--steps", 20, "--workdir", source)
    assert code == 2
    assert "steps=14 there and 20 here): choose another folder, and to begin from that run" in err
    assert f"--workdir NEW --init-from {source}" in err
    text = config.read_text()
    config.write_text(text.replace("momentum=0.9", "momentum=0.8"))
    code, _, err = shell(capsys, "train", other, *to, "--init-from", source)
    config.write_text(text)
    assert code == 2
    assert "has changed since" in err

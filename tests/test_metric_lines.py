"""What a run recorded, read back from a file that was cut, damaged or torn: nothing is lost in silence."""

import json

import pytest
import runs

from jaxdist import checkpoint, cli, metric_lines
from jaxdist.metric_lines import Sums

LINE = {"loss": 0.5, "bytes_sent": 0, "seconds": 0.1}


def shell(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def written(folder, *steps):
    """A file of metrics with these steps."""
    file = folder / "metrics.jsonl"
    file.write_text(
        "".join(json.dumps({"step": s, **LINE, "bytes_sent": 8 * s}) + "\n" for s in steps)
    )
    return file


@pytest.fixture
def stopped(tmp_path, monkeypatch, capsys):
    """A run of 40 steps that was killed at step 21, which is saved; its command and its folder."""
    config, folder = runs.small(tmp_path), tmp_path / "run"
    command = ("train", config, "--workdir", folder)
    write = checkpoint.write

    def killed(directory, step, *given, **named):
        if step == 28:
            raise KeyboardInterrupt
        write(directory, step, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", killed)
        assert shell(capsys, *command)[0] == 130
    assert checkpoint.steps(folder / "checkpoints") == [14, 21]
    return command, folder


def test_sums_are_those_of_all_steps_though_lines_are_lost_and_each_hole_is_said(stopped, capsys):
    command, folder = stopped
    file = folder / "metrics.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:10]))
    code, out, err = shell(capsys, *command)
    assert code == 0, err
    assert "lacks 11 of the steps up to 21: 11 to 21; they are not done again" in out
    assert [line["step"] for line in runs.lines(folder)] == [*range(1, 11), *range(22, 41)]
    # Each worker sends four float32 numbers to two neighbors a step.
    assert [line["bytes_sent"] for line in runs.lines(folder)[10:]] == [
        32 * step for step in range(22, 41)
    ]
    assert "bytes sent per worker   1,280" in out
    seconds = [line["seconds"] for line in runs.lines(folder)]
    assert seconds == sorted(seconds)
    # It is said again as long as it is so.
    code, out, _ = shell(capsys, *command)
    assert "already complete" in out
    assert "lacks 11 of the steps up to 40: 11 to 21" in out
    assert "bytes sent per worker   1,280" in out


def test_without_its_metrics_a_run_goes_on_with_its_sums(stopped, capsys):
    command, folder = stopped
    (folder / "metrics.jsonl").unlink()
    code, out, _ = shell(capsys, *command)
    assert code == 0
    assert "lacks 21 of the steps up to 21: 1 to 21" in out
    assert runs.lines(folder)[0]["bytes_sent"] == 32 * 22


def test_a_checkpoint_that_was_given_another_number_is_not_gone_on_from(stopped, capsys):
    command, folder = stopped
    (folder / "checkpoints" / "21").rename(folder / "checkpoints" / "35")
    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = shell(capsys, *command)
    assert code == 2
    assert "checkpoints/35 holds step 21" in err
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_damaged_lines_stop_no_run_and_no_comparison(stopped, tmp_path, capsys):
    command, folder = stopped
    file = folder / "metrics.jsonl"
    texts = file.read_bytes().splitlines(keepends=True)
    for number, damaged in (
        (3, texts[2].replace(b"loss", b"lo\xffs")),
        (5, b"{}\n"),
        (6, b"\0" * 30 + b"\n"),
        (8, b"[" * 100_000 + b"\n"),
        (9, texts[8].replace(b'"step": 9', b'"step": "9"')),
        (11, texts[10][:-9] + b"\n"),
    ):
        texts[number - 1] = damaged
    file.write_bytes(b"".join(texts) + b'{"step": ')
    before = file.read_bytes()
    other = tmp_path / "other"
    assert shell(capsys, *command[:3], other)[0] == 0
    code, out, err = shell(capsys, "compare", folder, other, "--workdir", tmp_path)
    assert code == 0, err
    assert f"6 of {len(texts)} lines are damaged and left out (line 3, 5 to 6, 8 to 9, 11)" in err
    code, out, err = shell(capsys, *command)
    assert code == 0, err
    assert "6 of" in out
    assert "the file as it was is kept as metrics.jsonl.damaged-1" in out
    assert (folder / "metrics.jsonl.damaged-1").read_bytes() == before
    assert "lacks 6 of the steps up to 21: 3, 5 to 6, 8 to 9, 11;" in out
    kept = [step for step in range(1, 41) if step not in (3, 5, 6, 8, 9, 11)]
    assert [line["step"] for line in runs.lines(folder)] == kept
    assert runs.recorded(folder)[-1] == runs.recorded(other)[-1]
    assert shell(capsys, "eval", folder)[0] == 0


def test_a_kill_before_the_first_checkpoint_says_what_is_done_again(tmp_path, monkeypatch, capsys):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    command = ("train", config, "--workdir", folder, "--steps", "9")

    def killed(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", killed)
        assert shell(capsys, *command)[0] == 130
    code, out, _ = shell(capsys, *command)
    assert code == 0
    assert "steps 1 to 9 were recorded and not saved: they are done again" in out
    assert "fresh run: step 0 of 9" in out
    assert [line["bytes_sent"] for line in runs.lines(folder)] == [32 * t for t in range(1, 10)]


def test_killed_and_resumed_it_adds_up_to_the_same(stopped, tmp_path, capsys):
    command, folder = stopped
    assert shell(capsys, *command)[0] == 0
    assert shell(capsys, *command[:3], tmp_path / "whole")[0] == 0
    assert runs.recorded(folder) == runs.recorded(tmp_path / "whole")


def test_a_checkpoint_that_remembers_no_sums_takes_those_of_the_lines(tmp_path):
    written(tmp_path, *range(3, 20))
    assert metric_lines.sums({}, tmp_path, 15) == Sums(began=2, bytes_sent=120, seconds=0.1)
    assert metric_lines.sums({}, tmp_path, 2) == Sums(began=2)
    assert metric_lines.sums(Sums(1, 2, 3.0).as_extra(), tmp_path, 15) == Sums(1, 2, 3.0)


def test_a_whole_file_is_left_as_it_is(tmp_path):
    file, told = written(tmp_path, 1, 2, 3), []
    before = file.stat().st_mtime_ns, file.read_bytes()
    metric_lines.truncate_metrics(tmp_path, 3, 0, say=told.append)
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    assert told == []

"""The script for TPU VMs as text: it prints what a shell would run, and runs nothing when told not to."""

import importlib.util
import re
import shlex

import pytest
import runs

SCRIPT = runs.ROOT / "examples" / "tpu_vm.py"
PAGE = SCRIPT.with_suffix(".md")
GIVEN = [
    "--name", "demo", "--zone", "europe-west4-b", "--accelerator", "v5litepod-8",
    "--runtime", "v2-alpha-tpuv5-lite",
]  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("tpu_vm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def never(*arguments, **keywords):
        raise AssertionError(f"ran {arguments}")

    monkeypatch.setattr(module.subprocess, "run", never)
    return module


def printed(script, capsys, *more):
    assert script.main([*GIVEN, "--dry-run", *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = [line for line in lines if line.startswith("#")]
    return stages, [shlex.split(line) for line in lines if not line.startswith("#")]


def test_a_dry_run_prints_every_command_and_runs_none(script, capsys):
    stages, commands = printed(script, capsys)
    assert stages == ["# create", "# wait", "# install", "# train", "# fetch", "# delete"]
    create, wait, pack, copy, install, train, make, fetch, delete = commands
    assert create == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "demo", "--node-id=demo",
        "--zone=europe-west4-b", "--accelerator-type=v5litepod-8",
        "--runtime-version=v2-alpha-tpuv5-lite",
    ]  # fmt: skip
    assert wait[4] == "describe"
    assert pack[:2] == ["git", "archive"]
    assert copy[4:7] == ["scp", "jaxdist-checkout.tar.gz", "demo:"]
    for command in (copy, install, train):
        assert "--worker=all" in command
    assert install[-1].endswith("pip install --quiet -c constraints.txt '.[tpu]'")
    assert train[-1] == (
        "--command=cd jaxdist-checkout && . .venv/bin/activate && "
        "jaxdist train configs/digits_gossip.py --workdir runs/tpu"
    )
    assert make == ["mkdir", "-p", "runs"]
    assert fetch[4:7] == ["scp", "demo:jaxdist-checkout/runs/tpu", "runs"]
    assert "--worker=0" in fetch
    assert delete[4:6] == ["delete", "demo"]
    assert all("--zone=europe-west4-b" in c for c in commands if c not in (pack, make))


def test_arguments_reach_the_remote_shell_as_they_are(script, capsys):
    awkward = ["--learning-rate", "0.05", "--note", "it's; $HOME && x"]
    _, commands = printed(
        script, capsys, "--stages", "train", "--workdir", "/mnt/my runs/a", "--spot", "--project",
        "p", "--", *awkward,
    )  # fmt: skip
    remote = commands[0][-1].removeprefix("--command=").split(" && ", 2)[2]
    assert shlex.split(remote) == [
        "jaxdist", "train", "configs/digits_gossip.py", "--workdir", "/mnt/my runs/a", *awkward,
    ]  # fmt: skip
    assert "--project=p" in commands[0]


def test_spot_is_asked_for_and_stages_keep_their_order(script, capsys):
    stages, commands = printed(script, capsys, "--spot", "--stages", "delete", "create")
    assert stages == ["# create", "# delete"]
    assert commands[0][-1] == "--spot"


def test_a_config_outside_the_checkout_is_refused(script):
    for config in ("/etc/config.py", "../config.py"):
        with pytest.raises(SystemExit, match="inside the checkout"):
            script.main([*GIVEN, "--dry-run", "--config", config])


def test_a_stage_that_fails_ends_it_and_deletes_nothing(script, capsys, monkeypatch):
    seen = []

    class Ended:
        returncode, stdout = 3, ""

    def run(command, **keywords):
        seen.append(command)
        return Ended

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main(GIVEN) == 3
    assert len(seen) == 1
    assert "create failed with code 3; the TPU is not deleted" in capsys.readouterr().err


def test_it_waits_until_the_tpu_is_there(script, monkeypatch, capsys):
    states = iter(["WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n"])

    class Answer:
        returncode = 0

        def __init__(self):
            self.stdout = next(states)

    monkeypatch.setattr(script.subprocess, "run", lambda command, **keywords: Answer())
    monkeypatch.setattr(script.time, "sleep", lambda seconds: None)
    assert script.main([*GIVEN, "--stages", "wait"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "# WAITING_FOR_RESOURCES",
        "# PROVISIONING",
    ]
    states = iter(["FAILED\n"])
    assert script.main([*GIVEN, "--stages", "wait"]) == 1


def test_the_page_says_what_is_not_tested_and_its_first_command_runs(script, capsys):
    text = PAGE.read_text()
    assert "None of this was run" in text
    block = re.search(r"```bash\n(python examples/tpu_vm.py.*?)```", text, re.S)
    _, _, *arguments = shlex.split(block.group(1).replace("\\\n", " "))
    assert arguments == [*GIVEN, "--dry-run"]
    # Every gcloud command of the page by hand is a verb that the script uses, or makes and deletes.
    verbs = set(re.findall(r"gcloud compute tpus tpu-vm (\w+)", text))
    assert verbs == {"create", "scp", "ssh", "delete"}

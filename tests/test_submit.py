"""What `jaxdist launch --on SITE --dry-run` prints: text that a shell and Kubernetes read as meant."""

import importlib.util
import json
import shlex
import subprocess

import pytest
import runs

from jaxdist import cli, fail_fast, submit

NASTY = ["train", "a b.py", "--workdir", "runs/it's; rm -rf ~"]
AFAR = ["train", "a b.py", "--workdir", "gs://bucket/it's; rm -rf ~"]


def printed(capsys, *options, command=NASTY):
    assert cli.main(["launch", *options, "--dry-run", "--", *command]) == 0
    return capsys.readouterr().out


def refused(capsys, *options, command=NASTY):
    """The one line that says why, with exit code 2."""
    assert cli.main(["launch", *options, "--", *command]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def test_a_tpu_vm_gets_the_command_that_the_example_script_runs(capsys):
    words = shlex.split(printed(capsys, "--on", "tpu-vm", "--name", "demo", "--zone", "here"))
    assert words[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "demo", "--zone=here"]
    assert words[7] == "--worker=all"
    inside = words[8].removeprefix("--command=")
    assert shlex.split(inside.split(" && ")[-1]) == ["jaxdist", *NASTY]
    path = runs.ROOT / "examples" / "tpu_vm.py"
    spec = importlib.util.spec_from_file_location("tpu_vm", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    given = ["--name", "demo", "--zone", "here", "--accelerator", "a", "--runtime", "r"]
    given += ["--stages", "train", "--dry-run"]
    given += ["--config", "c.py", "--workdir", "d"]
    assert script.main([*given, "--", "--steps", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()[1]
    command = ["train", "c.py", "--workdir", "d", "--steps", "3"]
    assert submit.tpu_vm(command, submit.Place("demo", zone="here")) == shown


def test_a_batch_script_is_a_script_and_requeues_itself(capsys, tmp_path):
    text = printed(capsys, "--on", "slurm", "--name", "demo", "--processes", "4")
    script = tmp_path / "job.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    assert "#SBATCH --nodes=4" in text
    # With stand-ins for what SLURM has, the script hands over the words and asks for another life.
    again_after = (fail_fast.NOT_FINITE, fail_fast.FAILED, fail_fast.GO_ON, 134, 137)
    cases = [(code, 2, True) for code in again_after] + [(code, 3, False) for code in again_after]
    for code, restarts, again in [*cases, *[(code, 0, False) for code in (0, 2, 3, 74)]]:
        stand_ins = (
            'srun() { shift; printf "%s\\n" "$@"; '
            f'bash -c "[ \\$JAXDIST_RESTARTER = slurm ]" || exit 99; return {code}; }}\n'
            'scontrol() { echo "again $2"; }\n'
        )
        done = subprocess.run(
            ["bash", "-c", stand_ins + text],
            capture_output=True,
            text=True,
            env={
                "SLURM_JOB_ID": "17",
                "SLURM_RESTART_COUNT": str(restarts),
                "PATH": "/usr/bin:/bin",
            },
        )
        lines = done.stdout.splitlines()
        assert lines[:5] == ["jaxdist", *NASTY]
        assert lines[5:] == (["again 17"] if again else [])
        assert done.returncode == code


def test_a_jobset_has_one_pod_a_process_and_fails_for_good_on_a_refusal(capsys):
    more = ("--name", "demo", "--processes", "4")
    text = printed(capsys, "--on", "gke-jobset", *more, command=AFAR)
    manifest = json.loads(text)
    assert manifest["kind"] == "JobSet"
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3, 74]
    container = job["template"]["spec"]["containers"][0]
    assert container["command"] == ["jaxdist", *AFAR]
    assert {"name": "JAXDIST_RESTARTER", "value": "gke-jobset"} in container["env"]
    address = next(v["value"] for v in container["env"] if v["name"] == "JAX_COORDINATOR_ADDRESS")
    assert address == "demo-workers-0-0.demo:1234"


def test_on_tpu_nodes_the_slice_says_who_is_who(capsys):
    more = ("--topology", "4x4", "--processes", "4", "--accelerator", "tpu-v6e-slice")
    text = printed(capsys, "--on", "gke-jobset", *more, command=AFAR)
    pod = json.loads(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    # JAX looks for the others itself; who starts it again it has to be told there as well.
    assert [x["name"] for x in pod["containers"][0]["env"]] == ["JAXDIST_RESTARTER"]
    more = ("--topology", "2x4", "--processes", "1", "--chips", "8")
    text = printed(capsys, "--on", "gke-jobset", *more, command=AFAR)
    pod = json.loads(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["4x4", "--processes", "2"], "has 16 chips, but --processes 2 of --chips 4 are 8; write "
         "--processes 4"),
        (["4x4", "--chips", "3"], "are 15; write --processes 4 --chips 4"),
        (["2x2x4", "--chips", "1", "--processes", "2"], "--topology 2x2x4 has 16 chips, but --processes 2 "
         "of --chips 1 are 2; write --processes 16"),
        (["4x"], "--topology '4x': expected counts of chips; write 4x4"),
    ],
)  # fmt: skip
def test_a_topology_has_as_many_chips_as_its_hosts(capsys, options, words):
    given = ("--on", "gke-jobset", "--dry-run", "--topology", *options)
    assert words in refused(capsys, *given, command=AFAR)


@pytest.mark.parametrize("workdir", [[], ["--workdir", "runs/a"], ["--workdir=file:///tmp/a"]])
def test_pods_that_share_no_folder_are_remarked_on(capsys, workdir):
    command = ["train", "c.py", *workdir]
    for site, remarked in (("gke-jobset", True), ("slurm", False)):
        assert cli.main(["launch", "--on", site, "--dry-run", "--", *command]) == 0
        assert ("or write --workdir gs://BUCKET/run" in capsys.readouterr().err) == remarked
    assert cli.main(["launch", "--on", "gke-jobset", "--dry-run", "--", *AFAR]) == 0
    assert not capsys.readouterr().err


def test_options_of_a_launch_here_are_remarked_on_where_they_say_nothing(capsys):
    given = ["--processes", "4", "--max-restarts", "2", "--on", "tpu-vm", "--dry-run"]
    assert cli.main(["launch", *given, "--", *AFAR]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("gcloud ")
    assert "--processes says nothing with --on tpu-vm" in said.err
    assert "--max-restarts says nothing with --on tpu-vm" in said.err


def test_a_topology_says_how_many_hosts(capsys):
    manifest = json.loads(printed(capsys, "--on", "gke-jobset", "--topology", "4x8", command=AFAR))
    assert manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on", "slurm", "--zone", "a"], "--zone says nothing with --on slurm"),
        (["--on", "slurm", "--image", "a"], "(it is for --on gke-jobset)"),
        (["--on", "tpu-vm", "--topology", "4x4"], "--topology says nothing with --on tpu-vm"),
        (["--on", "gke-jobset", "--chips", "4"], "--chips is of TPU nodes: write --topology 4x4"),
        (["--on", "slurm", "--processes", "0"], "--processes 0: expected a positive integer"),
        (["--on", "slurm", "--max-restarts", "-1"], "--max-restarts -1: expected 0 or more"),
    ],
)
def test_an_option_that_says_nothing_there_is_refused(capsys, options, words):
    assert words in refused(capsys, *options, "--dry-run", command=AFAR)


def test_what_is_for_other_sites_says_nothing_here(capsys):
    for option in ("--name", "--zone", "--image", "--topology", "--accelerator", "--chips"):
        line = refused(capsys, option, "4")
        assert f"{option} says nothing on this host: leave it out" in line


def test_never_is_refused_where_nothing_tells_the_lives_apart(capsys):
    command = [*AFAR, "--resume", "never"]
    line = refused(capsys, "--on", "gke-jobset", "--dry-run", command=command)
    assert "--resume never: a JobSet does not tell" in line
    assert "--resume never" in printed(capsys, "--on", "slurm", command=command)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on", "slurm"], "write --on slurm --dry-run"),
        (["--dry-run"], "write --on slurm --dry-run"),
        (["--on", "slurm", "--dry-run", "--name", "a\n#SBATCH --uid=0"], "write --name demo"),
        (["--processes", "0"], "write --processes 2"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(capsys, options, words):
    assert cli.main(["launch", *options, "--", *NASTY]) == 2
    assert words in capsys.readouterr().err


def test_only_training_is_launched(capsys):
    assert cli.main(["launch", "--", "eval", "runs/a"]) == 2
    assert "expected train after --" in capsys.readouterr().err

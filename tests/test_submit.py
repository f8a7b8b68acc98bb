"""What `jaxdist launch --on SITE --dry-run` prints: text that a shell and Kubernetes read as meant."""

import importlib.util
import json
import shlex
import subprocess

import pytest
import runs

from jaxdist import cli, submit

NASTY = ["train", "a b.py", "--workdir", "runs/it's; rm -rf ~"]


def printed(capsys, *options):
    assert cli.main(["launch", *options, "--dry-run", "--", *NASTY]) == 0
    return capsys.readouterr().out


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
    for code, restarts, again in ((70, 0, True), (70, 3, False), (2, 0, False), (0, 0, False)):
        stand_ins = (
            f'srun() {{ shift; printf "%s\\n" "$@"; return {code}; }}\n'
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
    text = printed(capsys, "--on", "gke-jobset", "--name", "demo", "--processes", "4")
    manifest = json.loads(text)
    assert manifest["kind"] == "JobSet"
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    container = job["template"]["spec"]["containers"][0]
    assert container["command"] == ["jaxdist", *NASTY]
    address = next(v["value"] for v in container["env"] if v["name"] == "JAX_COORDINATOR_ADDRESS")
    assert address == "demo-workers-0-0.demo:1234"


def test_on_tpu_nodes_the_slice_says_who_is_who(capsys):
    text = printed(capsys, "--on", "gke-jobset", "--topology", "4x4")
    pod = json.loads(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert "env" not in pod["containers"][0]


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

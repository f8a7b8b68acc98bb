"""The commands and manifests that start a run where another program starts and restarts processes.

They are text, and are printed, not run: read them, then give them to gcloud, sbatch or kubectl. There the
plain `jaxdist train` joins the others by itself; whoever starts a job again makes it go on.
"""

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

CHECKOUT = "jaxdist-checkout"
PORT = 1234  # of the coordinator, in a pod of its own


class Place(NamedTuple):
    """Where a job is to run.

    Attributes:
      name: of the job, or of the TPU VM.
      processes: how many hosts, each one process.
      max_restarts: how often the job is started again.
      zone: of the TPU VM.
      image: of the container, with jaxdist in it.
      topology: of the TPU slice, for example "4x4"; empty: no TPUs.
      accelerator: the label of the TPU nodes.
      chips: TPU chips of a host.
    """

    name: str = "jaxdist"
    processes: int = 2
    max_restarts: int = 3
    zone: str = "europe-west4-b"
    image: str = "IMAGE"
    topology: str = ""
    accelerator: str = "tpu-v5-lite-podslice"
    chips: int = 4


def tpu_vm(command: Sequence[str], place: Place) -> str:
    """The command that starts a run on all hosts of a TPU VM; `examples/tpu_vm.py` makes and deletes it.

    Example:
      >>> print(tpu_vm(["train", "a b.py"], Place("demo", zone="here")))
      gcloud compute tpus tpu-vm ssh demo --zone=here --worker=all
        '--command=cd jaxdist-checkout && . .venv/bin/activate && jaxdist train '"'"'a b.py'"'"''
    """
    inside = f"cd {CHECKOUT} && . .venv/bin/activate && {shlex.join(['jaxdist', *command])}"
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", place.name, f"--zone={place.zone}"]
    return shlex.join([*ssh, "--worker=all", f"--command={inside}"])


def slurm(command: Sequence[str], place: Place) -> str:
    """A batch script: one task a node, started again by SLURM where a node fails.

    `srun --kill-on-bad-exit` ends all tasks with the first that fails; the script then puts itself back
    into the queue, so many times as it may.
    """
    # A comment of sbatch ends at the line; what has another character is no name of SLURM's.
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={_plain(place.name)}",
        f"#SBATCH --nodes={place.processes}",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=TERM@120",
        "# Ended two minutes before the limit, the run is saved. A refusal (code 2) is not tried again.",
        f"srun --kill-on-bad-exit=1 {shlex.join(['jaxdist', *command])}",
        "code=$?",
        'if [ "$code" -ne 0 ] && [ "$code" -ne 1 ] && [ "$code" -ne 2 ] && '
        f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {place.max_restarts} ]; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines)


def gke_jobset(command: Sequence[str], place: Place) -> str:
    """A manifest for `kubectl apply -f -`, in JSON, which is YAML: a JobSet that restarts as a whole.

    On TPU nodes the coordinator is found from what GKE says of the slice; elsewhere from the names of
    the pods.
    """
    name = _plain(place.name)
    variables = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-workers-0-0.{name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(place.processes)},
        {
            "name": "JAX_PROCESS_ID",
            "valueFrom": {
                "fieldRef": {
                    "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                }
            },
        },
    ]
    container: dict[str, object] = {
        "name": "jaxdist",
        "image": place.image,
        "command": ["jaxdist", *command],
        "ports": [{"containerPort": PORT}],
    }
    pod: dict[str, object] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "containers": [container],
    }
    if place.topology:
        container["resources"] = {"limits": {"google.com/tpu": place.chips}}
        pod["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": place.accelerator,
            "cloud.google.com/gke-tpu-topology": place.topology,
        }
    else:
        container["env"] = variables
    # Any failed pod ends its job, and that all of the set; codes 1 and 2 would only fail again.
    job = {
        "parallelism": place.processes,
        "completions": place.processes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "jaxdist",
                        "operator": "In",
                        "values": [1, 2],
                    },
                }
            ]
        },
        "template": {"spec": pod},
    }
    failures = {
        "maxRestarts": place.max_restarts,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": failures,
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }
    return json.dumps(manifest, indent=2)


SITES = {"tpu-vm": tpu_vm, "slurm": slurm, "gke-jobset": gke_jobset}


def _plain(name: str) -> str:
    """A name that needs no quoting anywhere.

    Raises:
      ValueError: it is none.
    """
    fine = name.isascii() and name.replace("-", "").isalnum() and name == name.lower()
    if not fine or not name[0].isalpha() or name[-1] == "-" or len(name) > 40:
        raise ValueError(
            f"--name {name!r}: expected at most 40 lower-case letters, digits and hyphens, a letter "
            "first; write --name demo"
        )
    return name

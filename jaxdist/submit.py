"""The commands and manifests that start a run where another program starts and restarts processes.

They are text, and are printed, not run: read them, then give them to gcloud, sbatch or kubectl. There the
plain `jaxdist train` joins the others by itself; whoever starts a job again makes it go on. SLURM and JobSet
do so after every exit code but 0 and those of `FINAL`, so many times as they may: after 75, stopped and
saved, and after 1 as well.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdist import fail_fast
from jaxdist.errors import Refused

CHECKOUT = "jaxdist-checkout"
PORT = 1234  # of the coordinator, in a pod of its own
# Never tried again. Not 1: a value that is not finite ends with it and would come again, but so does Python
# after anything, and no scheduler can tell them apart.
FINAL = tuple(code for code in fail_fast.REFUSED if code != fail_fast.NOT_FINITE)
HERE = ""  # no site: this host
# Which options are for where.
USES = {
    HERE: ("processes", "devices_per_process", "max_restarts"),
    "tpu-vm": ("name", "zone"),
    "slurm": ("name", "processes", "max_restarts"),
    "gke-jobset": (
        "name", "processes", "max_restarts", "image", "topology", "accelerator", "chips",
    ),
}  # fmt: skip
OF_TPUS = ("accelerator", "chips")  # with a topology only
CHIPS = (4, 2, 1)  # of a host, as many as may be


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
    zone: str = "ZONE"
    image: str = "IMAGE"
    topology: str = ""
    accelerator: str = "tpu-v5-lite-podslice"
    chips: int = 4


def text(site: str, command: Sequence[str], given: Mapping[str, Any]) -> str:
    """What to give to a site, a key of `SITES`.

    Args:
      site: which one.
      command: `["train", CONFIG, ...]`.
      given: the options that somebody has written, by the names of `Place`.

    Raises:
      Refused: an option that this site does not use, or what would not come back there.
    """
    check_used(site, given)
    place = Place(**{name: value for name, value in given.items() if name in Place._fields})
    if place.topology and "processes" not in given:
        place = place._replace(processes=_hosts(place))
    if not place.topology and (alone := [name for name in OF_TPUS if name in given]):
        raise Refused(
            f"--{alone[0]} is of TPU nodes: write --topology 4x4 with it, or leave it out"
        )
    for name in ("processes", "chips"):
        if getattr(place, name) < 1:
            raise Refused(f"--{name} {getattr(place, name)}: expected a positive integer; write 2")
    if place.max_restarts < 0:
        raise Refused(f"--max-restarts {place.max_restarts}: expected 0 or more; write 3")
    return SITES[site](command, place)


def check_used(site: str, given: Iterable[str]) -> None:
    """Refuses options that say nothing there; those of a launch on this host `remarks` speaks of.

    Raises:
      Refused: names the option and where it is used.
    """
    for name in given:
        if name not in USES[site] and name not in USES[HERE]:
            option, sites = f"--{name.replace('_', '-')}", [x for x in USES if name in USES[x]]
            where = f"with --on {site}" if site else "on this host"
            used = " or ".join(f"--on {x}" if x else "without --on" for x in sites)
            raise Refused(f"{option} says nothing {where}: leave it out (it is for {used})")


def remarks(site: str, command: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """What somebody should know of what is printed, a line each."""
    said = [
        f"--{name.replace('_', '-')} says nothing with --on {site}"
        for name in given
        if name not in USES[site]
    ]
    workdir = option(command, "--workdir")
    scheme, afar, _ = workdir.partition("://")
    if site == "gke-jobset" and (not afar or scheme in ("file", "local", "memory")):
        said.append(
            f"--workdir {workdir or 'runs/CONFIG'}: pods share no path, and lose what is on theirs: mount a "
            "volume there, or write --workdir gs://BUCKET/run"
        )
    return said


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
    into the queue, so many times as it may: a time limit counts as well as a failure.
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
        "# Stopped two minutes before the limit, the run saves, ends with 75 and goes on in its next life.",
        f"export {fail_fast.RESTARTER}=slurm",
        f"srun --kill-on-bad-exit=1 {shlex.join(['jaxdist', *command])}",
        "code=$?",
        'case "$code" in',
        f"  {'|'.join(map(str, (0, *FINAL)))}) ;; # done, or refused: it would only be refused again",
        f'  *) if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {place.max_restarts} ]; then',
        '       scontrol requeue "$SLURM_JOB_ID"',
        "     fi ;;",
        "esac",
        'exit "$code"',
    ]
    return "\n".join(lines)


def gke_jobset(command: Sequence[str], place: Place) -> str:
    """A manifest for `kubectl apply -f -`, in JSON, which is YAML: a JobSet that restarts as a whole.

    On TPU nodes the coordinator is found from what GKE says of the slice; elsewhere from the names of
    the pods.

    Raises:
      Refused: `--resume never`, for no pod knows which life it is in; a topology that has not as many
        chips as the hosts.
    """
    name = _plain(place.name)
    _check_life(command)
    _check_chips(place)
    restarter = {"name": fail_fast.RESTARTER, "value": "gke-jobset"}
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
    container["env"] = [restarter, *([] if place.topology else variables)]
    # Any failed pod ends its job, and that all of the set; a refusal would only come again.
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
                        "values": list(FINAL),
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


def option(command: Sequence[str], name: str) -> str:
    """What a command says for an option, the last time; empty: nothing.

    >>> option(["train", "c.py", "--workdir=a", "--workdir", "b"], "--workdir")
    'b'
    """
    said = ""
    for word, after in zip(command, [*command[1:], ""], strict=True):
        if word == name or word.startswith(f"{name}="):
            said = after if word == name else word.removeprefix(f"{name}=")
    return said


def _check_life(command: Sequence[str]) -> None:
    """Refuses what a second life would be refused for."""
    if option(command, "--resume") == "never":
        raise Refused(
            "--resume never: a JobSet does not tell its pods whether they are the first: a later life would "
            "be refused; choose a new --workdir and leave it out"
        )


def _chips(place: Place) -> int:
    """How many chips a topology has."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", place.topology):
        raise Refused(f"--topology {place.topology!r}: expected counts of chips; write 4x4")
    return math.prod(map(int, place.topology.split("x")))


def _hosts(place: Place) -> int:
    """How many hosts a topology needs, at least one: `_check_chips` says what is wrong with it."""
    return max(_chips(place) // max(place.chips, 1), 1)


def _check_chips(place: Place) -> None:
    """Refuses a topology that the hosts do not make up."""
    if not place.topology:
        return
    count = _chips(place)
    if count != place.processes * place.chips:
        chips = next(n for n in (place.chips, *CHIPS) if count % n == 0)
        new = f" --chips {chips}" if chips != place.chips else ""
        raise Refused(
            f"--topology {place.topology} has {count} chips, but --processes {place.processes} of --chips "
            f"{place.chips} are {place.processes * place.chips}; write --processes {count // chips}{new}"
        )


def _plain(name: str) -> str:
    """A name that needs no quoting anywhere.

    Raises:
      Refused: it is none.
    """
    fine = name.isascii() and name.replace("-", "").isalnum() and name == name.lower()
    if not fine or not name[0].isalpha() or name[-1] == "-" or len(name) > 40:
        raise Refused(
            f"--name {name!r}: expected at most 40 lower-case letters, digits and hyphens, a letter "
            "first; write --name demo"
        )
    return name

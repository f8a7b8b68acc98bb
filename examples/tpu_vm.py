"""From no TPU VM to the results of a run, by the commands of gcloud: created, used, deleted.

    python examples/tpu_vm.py --name demo --zone europe-west4-b --accelerator v5litepod-8 \\
        --runtime v2-alpha-tpuv5-lite --dry-run

Prints every command before it runs it; with --dry-run it only prints, and needs neither gcloud nor an
account. Read examples/tpu_vm.md first: what it costs, and what was not tested.
"""

import argparse
import shlex
import subprocess
import sys
import time

CHECKOUT = "jaxdist-checkout"
# Everything that a checkout needs and nothing that it has made.
PACK = "git archive --format=tar.gz --output=jaxdist-checkout.tar.gz HEAD"


def commands(options: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The stages in order, each some commands as lists of arguments."""
    tpus = ["gcloud", "compute", "tpus"]
    where = [f"--zone={options.zone}"]
    if options.project:
        where.append(f"--project={options.project}")
    queue = [*tpus, "queued-resources"]
    vm = [*tpus, "tpu-vm"]

    def everywhere(command: str) -> list[str]:
        return [*vm, "ssh", options.name, *where, "--worker=all", f"--command={command}"]

    python = shlex.quote(options.python)
    create = [
        *queue,
        "create",
        options.name,
        f"--node-id={options.name}",
        *where,
        f"--accelerator-type={options.accelerator}",
        f"--runtime-version={options.runtime}",
    ]
    if options.spot:
        create.append("--spot")
    config = options.config
    if config.startswith("/") or ".." in config.split("/"):
        raise SystemExit(f"--config {config}: expected a path inside the checkout")
    train = ["jaxdist", "train", config, "--workdir", options.workdir, *options.rest]
    inside = f"cd {CHECKOUT} && . .venv/bin/activate"
    results = ["--recurse", *where, "--worker=0"]
    return {
        "create": [create],
        "wait": [[*queue, "describe", options.name, *where, "--format=value(state.state)"]],
        "install": [
            shlex.split(PACK),
            [*vm, "scp", "jaxdist-checkout.tar.gz", f"{options.name}:", *where, "--worker=all"],
            everywhere(
                f"mkdir -p {CHECKOUT} && tar -xzf jaxdist-checkout.tar.gz -C {CHECKOUT} && "
                f"cd {CHECKOUT} && ({python} -m venv .venv || (sudo apt-get -qq update && "
                f"sudo apt-get -qq install -y {python}-venv && {python} -m venv .venv)) && "
                ".venv/bin/pip install --quiet -c constraints.txt '.[tpu]'"
            ),
        ],
        "train": [everywhere(f"{inside} && {shlex.join(train)}")],
        "fetch": [
            ["mkdir", "-p", options.output],
            [
                *vm,
                "scp",
                f"{options.name}:{_remote(options.workdir)}",
                options.output,
                *results,
            ],
        ],
        "delete": [[*queue, "delete", options.name, *where, "--force", "--quiet"]],
    }


def _remote(workdir: str) -> str:
    return workdir if workdir.startswith("/") else f"{CHECKOUT}/{workdir}"


def run(stages: dict[str, list[list[str]]], chosen: list[str], *, dry_run: bool) -> int:
    """Runs the chosen stages in order; the first that fails ends it, with its exit code."""
    for stage in chosen:
        print(f"# {stage}")
        for command in stages[stage]:
            print(shlex.join(command), flush=True)
            if dry_run:
                continue
            code = _wait(command) if stage == "wait" else subprocess.run(command).returncode
            if code:
                print(f"# {stage} failed with code {code}; the TPU is not deleted", file=sys.stderr)
                return code
    return 0


def _wait(command: list[str]) -> int:
    """Asks every half minute until the TPU is there, or never will be."""
    while True:
        asked = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        state = asked.stdout.strip()
        if asked.returncode or state == "ACTIVE":
            return asked.returncode
        if state in ("FAILED", "SUSPENDING", "SUSPENDED"):
            print(f"# {state}: delete it (--stages delete) and create it again", file=sys.stderr)
            return 1
        print(f"# {state}", flush=True)
        time.sleep(30)


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, then prints and runs."""
    stages = ("create", "wait", "install", "train", "fetch", "delete")
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="What stands after -- goes to jaxdist train: -- --workers 16",
    )
    parser.add_argument("--name", required=True, help="of the TPU VM and of its request")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default: that of gcloud")
    parser.add_argument("--accelerator", required=True, help="for example v5litepod-8")
    parser.add_argument("--runtime", required=True, help="for example v2-alpha-tpuv5-lite")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--python", default="python3.11", help="on the VM, 3.11 or newer")
    parser.add_argument("--config", default="configs/digits_gossip.py")
    parser.add_argument(
        "--workdir",
        default="runs/tpu",
        help="the run's folder on the VM; with several hosts a mounted one that all of them see",
    )
    parser.add_argument("--output", default="runs", help="where the results go on this machine")
    parser.add_argument("--stages", nargs="+", choices=stages, default=list(stages))
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    options.rest = given[cut + 1 :]
    made = commands(options)
    return run(made, [s for s in stages if s in options.stages], dry_run=options.dry_run)


if __name__ == "__main__":
    sys.exit(main())

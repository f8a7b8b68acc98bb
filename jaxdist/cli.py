"""The command line: train, launch, status, eval, compare, check, inspect, plan, topology, data, doctor."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdist import fail_fast, store
from jaxdist.commands import looking, printing, running

# JAX and all that needs it are imported where they are used, so that a mistyped command costs nothing.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0 done, 1 stopped by a value that is not finite, 2 refused, 3 no checkpoint of those
      there are can be believed, 74 the disk is full or gone, with one line that says why on the error
      stream; 75 stopped and saved, where something starts the job again; 130 interrupted. Any other
      error is raised.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = _parser(only_help=given[1:] in (["-h"], ["--help"]))
        options, rest = parser.parse_known_args(given)
        if rest and options.command not in ("train", "check", "inspect", "plan"):
            parser.error(f"unrecognized arguments: {shlex.join(rest)}")
        return options.run(options, rest) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (code := printing.exit_code(error)) in (0, fail_fast.GO_ON):
            raise
        return _say(printing.said(error), code)


def _say(error: str, code: int) -> int:
    print(f"jaxdist: {' '.join(error.split())}", file=sys.stderr)
    return code


def _parser(*, only_help: bool = False) -> argparse.ArgumentParser:
    """`only_help`: a command is asked what it takes, and not a config what keywords it has."""
    parser = argparse.ArgumentParser(
        prog="jaxdist",
        description="Distributed optimisation for JAX: many workers, each with its own data, agree.",
        allow_abbrev=False,
    )
    parser.error = printing.refuse
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: object, summary: str, *, help: bool = True, of=commands):
        made = of.add_parser(
            name,
            help=summary,
            description=summary
            if help
            else f"{summary}; CONFIG --help shows the config's keywords",
            allow_abbrev=False,
            add_help=help or only_help,
        )
        made.error = printing.refuse
        made.set_defaults(run=run, parser=parser)
        return made

    one = command("train", running.train, "train a config, or go on with its run", help=False)
    one.add_argument("config", help="a Python file, for example configs/digits_gossip.py")
    where = "the run's folder, or a URL: gs://, s3://, file:// (default runs/CONFIG)"
    one.add_argument("--workdir", type=_place, help=where)
    one.add_argument("--resume", choices=("auto", "must", "never"), default="auto")
    one.add_argument(
        "--init-from", type=_place, help="begin from another run: other workers, another method"
    )
    one.add_argument("--init-config", help="that run's config, as of jaxdist eval --config")
    one = command(
        "launch", running.launch, "train in several processes on this host, and restart them"
    )
    # No defaults here: jaxdist/submit.py refuses, or remarks on, what was written and says nothing there.
    one.add_argument("--processes", type=int, help="how many processes (2)")
    one.add_argument("--devices-per-process", type=int, help="CPU devices of each (1)")
    one.add_argument(
        "--max-restarts", type=int, help="failures in a row without a new checkpoint (3)"
    )
    one.add_argument(
        "--on", choices=("tpu-vm", "slurm", "gke-jobset"), help="print it for another site"
    )
    one.add_argument(
        "--dry-run", action="store_true", help="print the command or the manifest only"
    )
    one.add_argument("--name", help="with --on: of the job, or of the TPU VM")
    one.add_argument("--zone", help="with --on tpu-vm")
    one.add_argument("--image", help="with --on gke-jobset: of the container")
    one.add_argument("--topology", help="with --on gke-jobset: of a TPU slice, as 4x4")
    one.add_argument("--accelerator", help="with --topology: the label of its nodes")
    one.add_argument("--chips", type=int, help="with --topology: of a host (4)")
    one.add_argument("train", nargs=argparse.REMAINDER, help="-- train CONFIG ...")
    one = command("status", running.status, "show what the processes of a run are doing")
    one.add_argument("workdir", type=_place, help="the run's folder", metavar="WORKDIR")
    one.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    one = command("eval", running.evaluate, "evaluate the newest checkpoint of a run")
    one.add_argument(
        "run_folder", nargs="?", type=_place, help="the run's folder", metavar="WORKDIR"
    )
    one.add_argument("--workdir", type=_place, help="the same")
    one.add_argument("--config", help="its config, if another user, machine or text made the run")
    one = command("compare", looking.compare, "show runs side by side: a table and a picture")
    one.add_argument("runs", nargs="+", type=_place, metavar="WORKDIR", help="two runs or more")
    one.add_argument("--output", type=Path, help="where to draw them (default DIR/comparison.png)")
    one.add_argument("--workdir", type=_folder, default=Path(), help="where the picture goes")
    one = command(
        "check", looking.check, "build a config and check it, without training", help=False
    )
    one.add_argument("config", help="a Python file")
    one.add_argument("--workdir", type=_place, help="a run's folder to check it against")
    one = command(
        "inspect",
        looking.inspect,
        "show what one compiled step sends, computes and needs",
        help=False,
    )
    one.add_argument("config", help="a Python file")
    one.add_argument("--target", default="cpu:8", help="compile for cpu:8, v5e:4x4, h100:8, ...")
    one.add_argument("--json", type=Path, help="also write everything to this file")
    one = command(
        "plan",
        looking.plan,
        "predict step times and scaling of a config, on hardware not here",
        help=False,
    )
    one.add_argument("config", help="a Python file")
    one.add_argument("--target", default="v5e:16x16", help="a chip and the shape of a whole slice")
    one.add_argument("--workers", type=_counts, default=[64, 256, 1024, 4096], help="64,256,1024")
    one.add_argument("--chips-per-worker", type=int, default=1)
    one.add_argument("--utilisation", type=_part, help="of the peak, assumed (default 0.4)")
    one.add_argument("--json", type=Path, help="also write everything to this file")
    one.add_argument("--picture", type=Path, help="also draw the efficiencies, a .png or .svg")
    one = command("topology", looking.topology, "show who listens to whom, and how fast they agree")
    one.add_argument("name", help="for example ring")
    one.add_argument("--size", type=int, default=8, help="how many workers (default 8)")
    one.add_argument(
        "--workdir", type=_folder, default=Path(), help="where to draw it (default here)"
    )
    one.add_argument("--output", type=Path, help="the drawing (default WORKDIR/NAME_SIZE.png)")
    one = command("data", looking.data, "prepare data sets of TFDS, or show which are prepared")
    actions = one.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "download a data set if need be, and write it as array_record"
    one = command("prepare", looking.data, summary, of=actions)
    one.add_argument("name", help="for example mnist, or digits, which needs no network")
    where = "where prepared sets are (default TFDS_DATA_DIR, or ~/tensorflow_datasets)"
    one.add_argument("--data-dir", "--workdir", type=_folder, help=where)
    one = command("list", looking.data, "show which data sets are prepared", of=actions)
    one.add_argument("--data-dir", "--workdir", type=_folder, help=where)
    one = command(
        "doctor", looking.doctor, "show versions, devices, ports, disk, network and data sets"
    )
    one.add_argument(
        "--workdir", type=_folder, default=Path(), help="a folder to look at (default here)"
    )
    return parser


def _place(text: str) -> Path:
    try:
        return store.folder(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is no path of a file system, and a URL is for train, status, eval, compare and check"
        )
    return _place(text)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of workers; write 64,256,1024")
    return sorted({int(part) for part in parts})


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no part of a peak; write a number like 0.4")
    return value

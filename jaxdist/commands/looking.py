"""Commands that look and do not train: compare, check, inspect, plan, topology, data, doctor."""

import argparse

from jaxdist.commands import printing
from jaxdist.errors import Refused


def compare(options: argparse.Namespace, rest: list[str]) -> None:
    """Shows runs side by side."""
    import sys

    from jaxdist import metric_lines, report, run_folder

    runs = {}
    for folder in options.runs:
        run_folder.read_record(folder)  # refuses what is no run
        metrics = metric_lines.read_metrics(
            folder, say=lambda line: print(f"jaxdist: {line}", file=sys.stderr)
        )
        if not metrics:
            raise Refused(f"{folder} has no metrics yet; write jaxdist train")
        runs[str(folder)] = metrics
    if len(runs) < 2:
        printing.refuse(
            "jaxdist compare needs two different runs: write jaxdist compare runs/a runs/b"
        )
    print(report.compare(runs))
    file = options.output or options.workdir / "comparison.png"
    printing.check_writable(file.parent)
    report.draw_comparison(runs, file)
    printing.row("drawn", file)


def check(options: argparse.Namespace, rest: list[str]) -> None:
    """Builds a config and checks it, without training."""
    import jax

    from jaxdist import experiment, layout, run_folder
    from jaxdist.algorithms.base import bytes_sent
    from jaxdist.data import check_batch

    config = experiment.read(options.config, rest)
    made = config.experiment
    batch = made.task.stream.batch(0)
    check_batch(batch, classes=made.task.classes)
    trainer = experiment.trainer_of(made)
    params = made.task.init(jax.random.key(made.seed))
    trainer.compiled.lower(trainer.init(params), trainer.place(batch))
    if options.workdir:
        run_folder.check(options.workdir, keywords=config.keywords, source=config.source)
    for name, value in config.keywords.items():
        printing.row(name, value)
    printing.row("parameters", f"{sum(x.size for x in jax.tree.leaves(params)):,}")
    if made.algorithm.sends:
        sent = bytes_sent(made.algorithm, params, 0, workers=made.workers)
        printing.row("bytes sent at step 0", f"{sent:,} per worker")
    printing.row("devices", layout.devices_of(trainer.mesh))
    for name, leaf in batch.items():
        printing.row(f"batch {name}", f"{leaf.dtype}{list(leaf.shape)}")
    print(f"{options.config} is fine")


def inspect(options: argparse.Namespace, rest: list[str]) -> None:
    """Shows what one compiled step sends, computes and needs."""
    import json

    printing.leave_accelerators_alone()
    import jax

    from jaxdist import audit, experiment, layout, run_folder, targets

    # Simulated devices must be asked for before JAX makes its first array.
    devices = targets.devices(options.target)
    config = experiment.read(options.config, rest)
    made = config.experiment
    mesh = layout.default_mesh(made.workers, devices)
    trainer = experiment.trainer_of(made, mesh=mesh)
    params = jax.eval_shape(made.task.init, jax.random.key(made.seed))
    found = audit.inspect(trainer.lower(params, made.task.stream.batch(0)))
    kind = mesh.devices.flat[0].device_kind
    print(f"{options.config}: {made.workers} workers on {mesh.size} x {kind}, one step\n")
    print(audit.table(found))
    if options.json:
        run_folder.replace(options.json, json.dumps(found.as_json(), indent=1) + "\n")
        printing.row("written to", options.json)


def plan(options: argparse.Namespace, rest: list[str]) -> None:
    """Predicts the time of a step at scale."""
    import json

    printing.leave_accelerators_alone()
    import jax

    from jaxdist import experiment, plan, report, run_folder

    utilisation = options.utilisation or plan.UTILISATION
    layouts = {
        workers: plan.lay_out(options.target, workers, chips=options.chips_per_worker)
        for workers in options.workers
    }
    made = experiment.read(options.config, rest).experiment
    params = jax.eval_shape(made.task.init, jax.random.key(made.seed))
    examples = jax.tree.map(lambda x: x[0], made.task.stream.batch(0))
    flops = plan.gradient_flops(made.task.loss_fn, params, examples)
    rows, missing = [], []
    for workers, layout in layouts.items():
        methods = {name: (method(workers), False) for name, method in plan.METHODS.items()}
        try:
            own = experiment.read(options.config, [*rest, "--workers", str(workers)]).experiment
            methods["this config"] = own.algorithm, own.overlap
        except ValueError as error:
            missing.append(f"the config itself has no {workers} workers: {error}")
        for name, (method, overlap) in methods.items():
            try:
                found = plan.predict(
                    method, params, layout, flops=flops, utilisation=utilisation, overlap=overlap
                )
            except ValueError as error:
                missing.append(f"{name}: {error}")
                continue
            rows.append(plan.Row(name, workers, found))
    count = sum(x.size for x in jax.tree.leaves(params))
    chip = next(iter(layouts.values())).chip
    print(f"{options.config} on {options.target}: a PREDICTION by a model, not a measurement\n")
    print(plan.table(sorted(rows, key=lambda row: row.workers)))
    print("\n".join(["", *dict.fromkeys(missing)] if missing else [""]))
    printing.row("parameters", f"{count:,}")
    printing.row(
        "FLOPs of a gradient", f"{flops:,}, {rows[0].prediction.compute_seconds * 1e3:.4f} ms"
    )
    printing.row("assumed", f"{utilisation:.0%} of {chip.peak / 1e12:.0f} TFLOP/s ({chip.source})")
    printing.row("inside a slice", f"{max(1, chip.links)} x {_speed(chip.inside)}")
    printing.row("between slices", _speed(chip.across))
    printing.row("model, and its errors", "docs/plan.md")
    if options.json:
        fields = [
            {
                "method": method,
                "workers": workers,
                **found._asdict(),
                "efficiency": found.efficiency,
            }
            for method, workers, found in rows
        ]
        lines = {"prediction": True, "target": options.target, "flops": flops, "rows": fields}
        run_folder.replace(options.json, json.dumps(lines, indent=1) + "\n")
        printing.row("written to", options.json)
    if options.picture:
        printing.check_writable(options.picture.parent)
        report.draw_plan(rows, options.picture, title=f"{options.config} on {options.target}")
        printing.row("drawn", options.picture)


def _speed(link) -> str:
    return f"{link.bytes_per_second / 1e9:g} GB/s, {link.latency_seconds * 1e6:g} us ({link.name})"


def topology(options: argparse.Namespace, rest: list[str]) -> None:
    """Shows who listens to whom, and draws it."""
    import difflib

    import numpy as np

    from jaxdist import report, topology

    name = options.name
    if name not in topology.CATALOGUE:
        near = difflib.get_close_matches(name, topology.CATALOGUE, 3) or sorted(topology.CATALOGUE)
        raise Refused(f"there is no topology {name!r}; did you mean {', '.join(near)}?")
    made = topology.CATALOGUE[name](options.size)
    print(made)
    printed = min(made.period, 4) if made.size <= 16 else 0
    for step in range(printed):
        print(f"matrix of round {step} (row: who receives)")
        print(np.array2string(made.matrix(step), precision=3, suppress_small=True))
    if 0 < printed < made.period:
        print(f"{made.period - printed} more rounds are not printed")
    printing.row("degree", made.degree)
    printing.row("directed", "yes" if made.directed else "no")
    printing.row("stochastic", made.stochastic)
    printing.row("spectral gap", f"{made.spectral_gap:.4g}")
    printing.row("rounds to consensus", _rounds(made))
    file = options.output or options.workdir / f"{name}_{options.size}.png"
    printing.check_writable(file.parent)
    report.draw_topology(made, file, title=f"{name}, size {made.size}")
    printing.row("drawn", file)


def _rounds(topology) -> str:
    """Rounds of mixing until no worker is further than a thousandth from where all end."""
    import numpy as np

    values, weights = np.eye(topology.size), np.ones(topology.size)
    for rounds in range(10_000):
        ratio = values / weights[:, None]
        if np.abs(ratio - values.sum(0) / topology.size).max() < 1e-3 or topology.size == 1:
            return f"{rounds} (from anywhere to within 1e-3)"
        values, weights = topology.matrix(rounds) @ values, topology.matrix(rounds) @ weights
    return "more than 10,000"


def data(options: argparse.Namespace, rest: list[str]) -> None:
    """Prepares or lists data sets."""
    from jaxdist.data import preparing, tfds

    if options.action == "prepare":
        preparing.prepare(options.name, data_dir=options.data_dir)
    folder = tfds.directory(options.data_dir)
    for name in tfds.prepared(folder) or ["nothing is prepared"]:
        print(f"{name} in {folder}")


def doctor(options: argparse.Namespace, rest: list[str]) -> None:
    """Shows what this machine has."""
    from jaxdist import doctor

    for name, value in doctor.examine(options.workdir):
        printing.row(name, value)

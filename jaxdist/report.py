"""Tables and pictures to look at: runs, a topology's rounds, a plan's efficiencies."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxdist import store
from jaxdist.plan import Row
from jaxdist.topology import Round, Topology


def draw_run(metrics: list[dict[str, Any]], file: Path, *, title: str) -> None:
    """Draws loss and accuracy against steps.

    Args:
      metrics: the lines of a run: `step` and `loss`, some with `accuracy` and `worst_accuracy`.
      file: where to, a .png or .svg.
      title: what stands above.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([m["step"] for m in metrics], [m["loss"] for m in metrics], linewidth=0.8)
    left.set(xlabel="step", ylabel="loss, mean over workers", yscale="log")
    seen = [m for m in metrics if "accuracy" in m]
    for name, label in (("accuracy", "readout"), ("worst_accuracy", "worst worker")):
        right.plot([m["step"] for m in seen], [m.get(name) for m in seen], marker="o", label=label)
    right.set(xlabel="step", ylabel="test accuracy")
    right.grid(alpha=0.3)
    right.legend()
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format=file.suffix[1:])
    store.write(file, picture.getvalue())


def compare(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Runs side by side, as lines to read: where each ended and what that took.

    Args:
      runs: the metrics of every run by its name, as `metric_lines.read_metrics` gives them. Simulated
        seconds stand in a column of their own; they have nothing to do with those of a clock on a wall.
    """
    columns = {
        "step": ("step", ",.0f"),
        "loss": ("loss", ".4f"),
        "accuracy": ("accuracy", ".4f"),
        "worst_accuracy": ("worst worker", ".4f"),
        "bytes_sent": ("bytes per worker", ",.0f"),
        "simulated_seconds": ("simulated s", ",.1f"),
        "seconds": ("wall s", ",.1f"),
    }
    lasts = {name: _lasts(metrics) for name, metrics in runs.items()}
    shown = {key: c for key, c in columns.items() if any(key in last for last in lasts.values())}
    rows = [["run", *(word for word, _ in shown.values())]]
    for name, last in lasts.items():
        cells = [
            format(last[key], form) if key in last else "-" for key, (_, form) in shown.items()
        ]
        rows.append([name, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _lasts(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The newest value of everything."""
    return {key: value for line in metrics for key, value in line.items()}


def draw_comparison(runs: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draws the loss of several runs, and their accuracy, against what they cost.

    Accuracy stands against steps and against bytes; against simulated seconds too where every run has
    a clock.

    Args:
      runs: as for `compare`.
      file: where to, a .png or .svg.
    """
    costs = {"step": "step", "bytes_sent": "bytes sent per worker"}
    if all("simulated_seconds" in _lasts(metrics) for metrics in runs.values()):
        costs["simulated_seconds"] = "simulated seconds"
    figure = Figure(figsize=(4.2 * (1 + len(costs)), 4.2), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(costs))
    for name, metrics in runs.items():
        losses = [m["loss"] for m in metrics]
        left.plot([m["step"] for m in metrics], losses, linewidth=0.8, label=name)
        seen = [m for m in metrics if "accuracy" in m]
        for axes, cost in zip(others, costs, strict=True):
            # A clock may have come or gone within a run.
            both = [(m[cost], m["accuracy"]) for m in seen if cost in m]
            axes.plot([x for x, _ in both], [y for _, y in both], marker=".", label=name)
    left.set(xlabel="step", ylabel="loss, mean over workers", yscale="log")
    for axes, word in zip(others, costs.values(), strict=True):
        axes.set(xlabel=word, ylabel="test accuracy of the readout")
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    figure.savefig(file, dpi=120)


def draw_topology(topology: Topology, file: Path, *, title: str, most: int = 6) -> None:
    """Draws who listens to whom, a circle for each round; arrows point to who receives.

    Args:
      topology: any.
      file: where to, a .png or .svg.
      title: what stands above; it also says how many rounds are not shown.
      most: so many rounds, the first ones.
    """
    rounds = min(topology.period, most)
    columns = min(rounds, 3)
    rows = -(-rounds // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for step, axes in enumerate(grid[:rounds]):
        _draw_round(axes, topology.rounds[step])
        axes.set_title("" if topology.period == 1 else f"round {step}")
    for axes in grid:
        axes.set(aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
        axes.axis("off")
    hidden = topology.period - rounds
    figure.suptitle(title + (f"; {hidden} more rounds are not shown" if hidden else ""))
    figure.savefig(file, dpi=120)


def draw_plan(rows: list[Row], file: Path, *, title: str) -> None:
    """Draws predicted scaling efficiency against the number of workers, a line for each method.

    Args:
      rows: of `jaxdist.plan`.
      file: where to, a .png or .svg.
      title: what stands above.
    """
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for mark, name in zip("osv^DPX*<>", dict.fromkeys(row.method for row in rows), strict=False):
        own = sorted((row.workers, row.prediction.efficiency) for row in rows if row.method == name)
        axes.plot(*zip(*own, strict=True), marker=mark, alpha=0.8, label=name)
    counts = sorted({row.workers for row in rows})
    axes.set(xscale="log", xlabel="workers", ylabel="predicted efficiency", ylim=(0, 1.05))
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.set_title(f"{title}: predicted, not measured", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=120)


def _draw_round(axes: Any, one: Round) -> None:
    size, radius = one.size, 1.0 if one.size > 1 else 0.0
    angle = np.pi / 2 - 2 * np.pi * np.arange(size) / size
    places = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    links = set(zip(one.senders.tolist(), one.receivers.tolist(), strict=True))
    both = [[places[i], places[j]] for i, j in links if i < j and (j, i) in links]
    width = 1.2 if len(both) < 200 else 0.3  # in a dense graph wide lines are one blot
    axes.add_collection(LineCollection(both, colors="tab:gray", linewidths=width))
    for i, j in links:
        if (j, i) not in links:
            style = {"arrowstyle": "-|>", "color": "tab:gray", "shrinkA": 6, "shrinkB": 6}
            axes.annotate("", places[j], places[i], arrowprops=style)
    axes.scatter(*places.T, s=90 if size <= 32 else 2000 / size, zorder=3)
    if size <= 32:
        for worker, (x, y) in enumerate(places):
            lift = 0.2 if size == 1 else 0.0
            axes.text(1.2 * x, 1.2 * y + lift, str(worker), ha="center", va="center")
    if not links and size > 1:
        axes.text(0, 0, "nobody sends", ha="center", va="center", color="tab:gray")

"""Pictures to look at: a run's loss and accuracy, a topology's rounds, a plan's efficiencies."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

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
        right.plot([m["step"] for m in seen], [m[name] for m in seen], marker="o", label=label)
    right.set(xlabel="step", ylabel="test accuracy")
    right.grid(alpha=0.3)
    right.legend()
    figure.suptitle(title)
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

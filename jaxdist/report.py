"""Pictures to look at: a run's loss and accuracy, and a topology's rounds."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdist.topology.base import Topology


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


def draw_topology(topology: Topology, file: Path, *, title: str) -> None:
    """Draws who listens to whom, a circle for each of the first six rounds.

    Args:
      topology: any.
      file: where to, a .png or .svg.
      title: what stands above.
    """
    rounds = min(topology.period, 6)
    figure = Figure(figsize=(3 * rounds, 3.4), layout="constrained")
    angle = np.pi / 2 - 2 * np.pi * np.arange(topology.size) / topology.size
    x, y = np.cos(angle), np.sin(angle)
    for step, axes in enumerate(figure.subplots(1, rounds, squeeze=False)[0]):
        weights = topology.matrix(step)
        for receiver, sender in np.argwhere(weights > 0):
            if receiver != sender:
                both = weights[sender, receiver] > 0
                axes.annotate(
                    "",
                    (x[receiver], y[receiver]),
                    (x[sender], y[sender]),
                    arrowprops={
                        "arrowstyle": "-" if both else "-|>",
                        "color": "tab:gray",
                        "shrinkA": 6,
                        "shrinkB": 6,
                    },
                )
        axes.scatter(x, y, s=90, zorder=3)
        if topology.size <= 32:
            for worker in range(topology.size):
                axes.text(1.2 * x[worker], 1.2 * y[worker], str(worker), ha="center", va="center")
        axes.set(aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), title=f"round {step}")
        axes.axis("off")
    figure.suptitle(title)
    figure.savefig(file, dpi=120)

"""Pictures of topologies show every link once and say what they leave out."""

import pytest
from matplotlib.figure import Figure

from jaxdist import report, topology


@pytest.mark.parametrize(
    ("name", "size", "hidden"),
    [
        ("star", 1, 0),
        ("ring", 2, 0),
        ("base_k", 5, 0),
        ("random_matching", 8, 2),
        ("complete", 40, 0),
    ],
)
def test_a_picture_has_all_links_of_its_rounds(tmp_path, monkeypatch, name, size, hidden):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    made = topology.CATALOGUE[name](size)
    report.draw_topology(made, tmp_path / "a.png", title=name)
    figure = drawn[0]
    assert (f"{hidden} more rounds are not shown" in figure.get_suptitle()) == bool(hidden)
    shown = figure.axes[: made.period]
    for one, axes in zip(made.rounds, shown, strict=False):
        lines = axes.collections[0].get_segments()
        assert 2 * len(lines) == len(one.senders)
    assert (tmp_path / "a.png").stat().st_size > 1000

"""The benchmark of what a checkpoint costs runs, and saves what it says."""

import subprocess
import sys

import pytest
import runs

from jaxdist import checkpoint


@pytest.mark.slow
def test_every_kind_of_saving_is_measured_and_saves(tmp_path):
    script = str(runs.ROOT / "benchmarks" / "checkpoint_cost.py")
    short = ["--megabytes", "1", "--rounds", "1", "--saves", "2", "--steps", "2"]
    said = subprocess.run(
        [sys.executable, script, *short, "--folder", str(tmp_path)],
        env={"PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    kinds = {line[:12].strip(): line[12:].split() for line in said.splitlines()[1:]}
    assert set(kinds) == {"none", "in place", "behind"}
    assert float(kinds["none"][1]) == 1.0
    assert float(kinds["behind"][0]) > 0
    for kind in ("in place0", "behind0"):
        assert checkpoint.steps(tmp_path / kind) == [2, 4]

"""Two hosts, made of network namespaces, whose cable is cut: both sides end, and go on once it is mended."""

import os
import shutil
import subprocess
import sys

import pytest
import runs

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
        reason="network namespaces need root, ip (iproute2) and unshare (util-linux)",
    ),
]
HOSTS = ("10.99.0.1", "10.99.0.2")
# Inside its namespace a host's name stands for its address there: that is where gloo listens.
INSIDE = 'mount --bind "$0" /etc/hosts; exec "$@"'
SHELL = "import sys; from jaxdist.cli import main; sys.exit(main())"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable():
    """Two namespaces with a cable between them; `cable("down")` cuts it, `cable("up")` mends it."""
    names = [f"jaxdist{os.getpid()}{side}" for side in "ab"]
    ends = [f"jd{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", ends[1])
        for name, end, address in zip(names, ends, HOSTS, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
        yield names, lambda to: ip("-n", names[0], "link", "set", ends[0], to)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(process, namespace, folder, *arguments):
    """`jaxdist ARGUMENTS` as one of the two hosts."""
    hosts = folder / f"hosts{process}"
    hosts.write_text(f"127.0.0.1 localhost\n{HOSTS[process]} {os.uname().nodename}\n")
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    said = {
        "JAX_COORDINATOR_ADDRESS": f"{HOSTS[0]}:8476",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
        "JAXDIST_PATIENCE_SECONDS": "10",
        "PYTHONPATH": str(runs.ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    inside = ["ip", "netns", "exec", namespace, "unshare", "-m", "sh", "-c", INSIDE, str(hosts)]
    started = subprocess.Popen(
        [*inside, sys.executable, "-c", SHELL, *map(str, arguments)],
        cwd=runs.ROOT,
        env={**keep, **said},
        process_group=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs.STARTED.append(started)
    return started


def test_both_sides_of_a_cut_end_and_the_mended_run_changes_no_bit(tmp_path, cable):
    names, set_cable = cable
    config = runs.small(tmp_path)

    def both(folder):
        command = ("train", config, "--workdir", folder, "--steps", "60", "--slow", "0.1")
        return [start(i, name, tmp_path, *command) for i, name in enumerate(names)]

    def done(folder):
        said = [runs.ended(process) for process in both(folder)]
        assert [code for code, _, _ in said] == [0, 0], said
        return runs.recorded(folder), said[0][1]

    calm, _ = done(tmp_path / "calm")
    cut = tmp_path / "cut"
    pair = both(cut)
    runs.until(lambda: len(runs.lines(cut)) >= 20)
    set_cable("down")
    said = [runs.ended(process, seconds=60) for process in pair]
    assert all(code for code, _, _ in said), said
    assert any("stuck in phase step" in err for _, _, err in said), said
    assert len(runs.lines(cut)) < 60
    set_cable("up")
    mended, out = done(cut)
    assert "resuming: step" in out
    assert mended == calm

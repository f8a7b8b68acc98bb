"""Simulated networks: latency and bandwidth of a link, and what an exchange over such links costs.

The model is Hockney's: a message of n bytes takes latency + n / bandwidth, and a worker sends one
message at a time. Formulas of the collectives: Thakur, Rabenseifner and Gropp, Optimization of
Collective Communication Operations in MPICH, 2005.
"""

import math
from dataclasses import dataclass

from jaxdist.errors import Refused


@dataclass(frozen=True)
class Network:
    """A link: what every worker has between itself and the others.

    Attributes:
      name: what it is called.
      latency_seconds: until the first byte of a message arrives.
      bytes_per_second: out of one worker, in one direction.
      source: where both numbers come from, and whether they were specified, measured or assumed.

    Raises:
      Refused: a latency below 0 or a bandwidth that is not above 0.

    Example:
      >>> Network("two cans and a string", latency_seconds=0.01, bytes_per_second=300.0, source="toy")
      Network(name='two cans and a string', latency_seconds=0.01, bytes_per_second=300.0, source='toy')
    """

    name: str
    latency_seconds: float
    bytes_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.latency_seconds < math.inf:
            raise Refused(
                f"latency_seconds={self.latency_seconds!r}, expected a finite number of at least 0; "
                "write for example latency_seconds=1e-6"
            )
        if not self.bytes_per_second > 0:
            raise Refused(
                f"bytes_per_second={self.bytes_per_second!r}, expected a number above 0; "
                "write for example bytes_per_second=1.25e9 for 10 Gb/s"
            )


def message(network: Network, size_bytes: float) -> float:
    """Seconds of one message: latency + n / B.

    >>> message(PRESETS["ethernet_10g"], 1.25e9)
    1.00005
    """
    return network.latency_seconds + size_bytes / network.bytes_per_second


def ring_all_reduce(network: Network, size_bytes: float, workers: int) -> float:
    """Seconds of a ring all-reduce of n bytes: 2 (W - 1) latency + 2 (W - 1) / W n / B.

    W - 1 steps reduce and W - 1 gather, a part of n / W bytes in each. Its bandwidth is the best
    possible, its latency grows with W.

    >>> round(ring_all_reduce(PRESETS["ethernet_10g"], 1.25e9, 8), 4)
    1.7507
    """
    return 2 * (workers - 1) * message(network, size_bytes / workers)


def tree_all_reduce(network: Network, size_bytes: float, workers: int) -> float:
    """Seconds of a binomial tree, up and down: 2 ceil(log2 W) (latency + n / B).

    Better than a ring for small messages between many workers.

    >>> round(tree_all_reduce(PRESETS["ethernet_10g"], 1.25e9, 8), 4)
    6.0003
    """
    return 2 * (workers - 1).bit_length() * message(network, size_bytes)


def all_reduce(network: Network, size_bytes: float, workers: int) -> float:
    """Seconds of the faster of ring and tree, as libraries choose it.

    >>> all_reduce(PRESETS["ethernet_10g"], 4, 64) == tree_all_reduce(PRESETS["ethernet_10g"], 4, 64)
    True
    """
    return min(
        ring_all_reduce(network, size_bytes, workers), tree_all_reduce(network, size_bytes, workers)
    )


def neighbor_exchange(network: Network, size_bytes: float, degree: int) -> float:
    """Seconds to send n bytes to each of `degree` neighbors and hear as many: latency + degree n / B.

    The messages share the worker's link and are under way together. Nobody to talk to: 0.

    >>> neighbor_exchange(PRESETS["ethernet_10g"], 1.25e9, 2)
    2.00005
    """
    return message(network, degree * size_bytes) if degree else 0.0


def server_fan_in(network: Network, size_bytes: float, workers: int) -> float:
    """Seconds until a server has n bytes of each and each has its n bytes back: 2 (latency + W n / B).

    The link of the server is what everybody shares.

    >>> server_fan_in(PRESETS["ethernet_10g"], 1.25e9, 8)
    16.0001
    """
    return 2 * message(network, workers * size_bytes)


def _gbit(per_second: float) -> float:
    return per_second * 1e9 / 8


_CLOUD = "bandwidth: specification, cloud.google.com/tpu/docs"
_BOOK = "jax-ml.github.io/scaling-book (How to Scale Your Model, parts 2 and 3)"
_ICI = f"one link, one direction; specification, as tabled in {_BOOK}; latency: assumed, about 1 us a hop"
_DCN = (
    "latency: assumed, a tenth of the round trip of 500 us within a data centre of J. Dean (2009)"
)
_NVLINK = "nvidia.com/data-center/nvlink, half of the total of both directions; latency: assumed"
_INFINIBAND = (
    "InfiniBand Trade Association, rate of a 4x port; latency: assumed, MPI half round trip"
)
_ETHERNET = "bandwidth: specification, line rate of IEEE 802.3; latency: assumed, TCP in one rack"

# Assumed numbers are orders of magnitude. Measure your own, and write a Network of your own.
PRESETS: dict[str, Network] = {
    one.name: one
    for one in (
        Network("tpu_v4_ici", 1e-6, 4.5e10, _ICI),
        Network("tpu_v5e_ici", 1e-6, 5e10, _ICI),
        Network("tpu_v5p_ici", 1e-6, 1e11, _ICI),
        Network("tpu_v6e_ici", 1e-6, 1e11, _ICI),
        Network(
            "tpu_v5e_dcn", 5e-5, _gbit(25), f"{_CLOUD}/v5e: 6.4 Tb/s for a pod of 256 chips; {_DCN}"
        ),
        Network("tpu_v5p_dcn", 5e-5, _gbit(50), f"{_CLOUD}/v5p: 50 Gb/s for each chip; {_DCN}"),
        Network("nvlink3", 2e-6, 3e11, f"bandwidth: specification, A100: 12 links; {_NVLINK}"),
        Network("nvlink4", 2e-6, 4.5e11, f"bandwidth: specification, H100: 18 links; {_NVLINK}"),
        Network("infiniband_hdr", 2e-6, _gbit(200), f"bandwidth: specification, {_INFINIBAND}"),
        Network("infiniband_ndr", 2e-6, _gbit(400), f"bandwidth: specification, {_INFINIBAND}"),
        Network("ethernet_1g", 5e-5, _gbit(1), _ETHERNET),
        Network("ethernet_10g", 5e-5, _gbit(10), _ETHERNET),
        Network("ethernet_100g", 1e-5, _gbit(100), _ETHERNET),
        Network(
            "home_uplink",
            2e-2,
            _gbit(0.02),
            "bandwidth: specification, the FCC's benchmark of 2024 for fixed broadband, 20 Mb/s up; "
            "latency: assumed, the order of idle latencies in Measuring Broadband America",
        ),
    )
}

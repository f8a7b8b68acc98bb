"""Costs of messages: known limits, and more of anything never costs less."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdist import network
from jaxdist.network import PRESETS, Network

LINKS = st.builds(
    Network, st.just("drawn"), st.floats(0, 1), st.floats(1.0, 1e12), st.just("a test")
)
SIZES = st.floats(1.0, 1e12)
WORKERS = st.integers(1, 4096)
COLLECTIVES = [
    network.ring_all_reduce,
    network.tree_all_reduce,
    network.all_reduce,
    network.neighbor_exchange,
    network.server_fan_in,
]
EVERY = pytest.mark.parametrize("cost", COLLECTIVES)
SLACK = 1 + 1e-12  # the two sides round differently


@EVERY
@given(LINKS, SIZES, WORKERS)
def test_more_bytes_or_workers_or_a_worse_link_never_cost_less(cost, link, size, workers):
    seconds = cost(link, size, workers)
    worse = (
        cost(link, 2 * size, workers),
        cost(link, size, workers + 1),
        cost(Network("slow", link.latency_seconds, link.bytes_per_second / 2, ""), size, workers),
        cost(Network("far", link.latency_seconds + 1, link.bytes_per_second, ""), size, workers),
    )
    assert all(seconds <= other * SLACK for other in worse)
    assert 0 <= seconds < math.inf


@given(LINKS, SIZES)
def test_one_worker_has_nobody_to_talk_to(link, size):
    assert network.ring_all_reduce(link, size, 1) == 0
    assert network.tree_all_reduce(link, size, 1) == 0
    assert network.neighbor_exchange(link, size, 0) == 0


@given(LINKS, SIZES, st.integers(2, 4096))
def test_a_ring_needs_its_latency_and_its_bytes_and_no_more(link, size, workers):
    hops, wire = 2 * (workers - 1) * link.latency_seconds, size / link.bytes_per_second
    seconds = network.ring_all_reduce(link, size, workers)
    assert seconds == pytest.approx(hops + 2 * (workers - 1) / workers * wire)
    # Nobody can reduce and spread n bytes with less than 2 (W - 1) / W n through every link.
    assert network.tree_all_reduce(link, size, workers) * SLACK >= (
        2 * (workers - 1) / workers * wire
    )


def test_small_messages_take_the_tree_and_large_ones_the_ring():
    link = PRESETS["ethernet_10g"]
    for workers in (4, 7, 64):
        assert network.all_reduce(link, 4, workers) == network.tree_all_reduce(link, 4, workers)
        assert network.all_reduce(link, 1e12, workers) == network.ring_all_reduce(
            link, 1e12, workers
        )


@given(LINKS, SIZES)
def test_two_workers_exchange_as_neighbors_do_and_a_server_is_a_bottleneck(link, size):
    message = network.message(link, size)
    assert network.neighbor_exchange(link, size, 1) == message
    assert network.tree_all_reduce(link, size, 2) == 2 * message
    assert network.server_fan_in(link, size, 1) == 2 * message
    assert network.server_fan_in(link, size, 64) * SLACK >= network.neighbor_exchange(
        link, size, 64
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_its_numbers_come_from(name):
    link = PRESETS[name]
    assert link.name == name
    assert "specification" in link.source
    assert "latency: assumed" in link.source
    assert 1e-7 < link.latency_seconds < 1
    assert 1e6 < link.bytes_per_second < 1e12


def test_presets_are_in_the_order_of_their_classes():
    slow_to_fast = "home_uplink ethernet_1g ethernet_10g tpu_v5e_dcn tpu_v5p_dcn ethernet_100g"
    slow_to_fast += " infiniband_hdr tpu_v5e_ici tpu_v5p_ici nvlink3 nvlink4"
    rates = [PRESETS[name].bytes_per_second for name in slow_to_fast.split()]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("latency", "rate", "says"),
    [
        (-1.0, 1.0, "latency_seconds=-1.0"),
        (math.inf, 1.0, "latency_seconds=inf"),
        (math.nan, 1.0, "latency_seconds=nan"),
        (0.0, 0.0, "bytes_per_second=0.0"),
        (0.0, math.nan, "bytes_per_second=nan"),
    ],
)
def test_impossible_links_are_refused_by_value(latency, rate, says):
    with pytest.raises(ValueError, match=says):
        Network("bad", latency, rate, "")

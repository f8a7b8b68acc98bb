"""Methods with many steps on one's own data between two messages."""

from jaxdist.algorithms.block_momentum import block_momentum
from jaxdist.algorithms.diloco import diloco
from jaxdist.algorithms.federated import federated
from jaxdist.algorithms.local_sgd import local_sgd
from jaxdist.algorithms.slow_momentum import slow_momentum
from jaxdist.algorithms.streaming_diloco import streaming_diloco
from jaxdist.catalogue.entry import Entry

ENTRIES: dict[str, Entry] = {
    "local_sgd": Entry(
        make=local_sgd,
        tier=1,
        rule="x_i += u_i; every `period` steps x_i <- mean x",
        shared="-",
        local="params, inner state",
        sends="size(params) every `period` steps",
        when="a slow network, similar data",
        paper="arXiv:1805.09767",
    ),
    "diloco": Entry(
        make=diloco,
        tier=1,
        rule="x_i += u_i; every `period` steps z += outer(z - mean x), x_i <- z",
        shared="outer params, outer state",
        local="params, inner state",
        sends="size(params) every `period` steps",
        when="workers far apart, long periods",
        paper="arXiv:2311.08105",
    ),
    "streaming_diloco": Entry(
        make=streaming_diloco,
        tier=1,
        rule="diloco a fragment at a time, `delay` steps late; x_i <- (1-blend) z + blend x_i",
        shared="outer params, outer states, what is under way",
        local="params, inner state",
        sends="size(params)/F every `period`/F steps",
        when="workers far apart whose traffic has to be even",
        paper="arXiv:2501.18512",
    ),
    "federated": Entry(
        make=federated,
        tier=1,
        rule="clients of a round: x_i += u_i(g_i, corrected); at its end z += outer(z - mean x), x_i <- z",
        shared="z, outer state, control variate",
        local="params, inner state, control variates",
        sends="size(params) a round; twice with SCAFFOLD",
        when="many clients with unlike data, few at a time",
        paper="arXiv:1602.05629",
    ),
    "slow_momentum": Entry(
        make=slow_momentum,
        tier=2,
        rule="x_i += u_i; every `period` steps v = b v + (z - mean x)/lr, z -= a lr v, x_i <- z",
        shared="slow params, their momentum",
        local="params, inner state",
        sends="size(params) every `period` steps",
        when="Local SGD that lags behind all_reduce",
        paper="arXiv:1910.00643",
    ),
    "block_momentum": Entry(
        make=block_momentum,
        tier=2,
        rule="x_i += u_i; every `period` steps D = b D + c (mean x - y), z += D, x_i <- y",
        shared="block start, its momentum",
        local="params, inner state",
        sends="size(params) every `period` steps",
        when="many workers, long blocks",
        paper="Chen & Huo 2016",
    ),
}

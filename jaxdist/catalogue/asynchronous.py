"""Methods in which workers are stale: a parameter server, or neighbors, at everybody's own pace."""

from jaxdist.algorithms.delay_compensated import delay_compensated
from jaxdist.algorithms.delayed import delayed
from jaxdist.algorithms.downpour import downpour
from jaxdist.algorithms.elastic_averaging import elastic_averaging
from jaxdist.algorithms.hogwild import hogwild
from jaxdist.algorithms.pairwise import pairwise
from jaxdist.algorithms.stale_synchronous import stale_synchronous
from jaxdist.catalogue.entry import Entry

ENTRIES: dict[str, Entry] = {
    "downpour": Entry(
        make=downpour,
        tier=1,
        rule="as they arrive: x += inner(g_i(x_i)); x_i <- x",
        shared="server params, inner state, clock",
        local="copy",
        sends="size(params) a step to all; sharded server: 2 size(params)",
        when="workers of unequal speed; nobody waits",
        paper="Dean et al. 2012",
    ),
    "stale_synchronous": Entry(
        make=stale_synchronous,
        tier=1,
        rule="downpour, but nobody leads the slowest by more than `bound`",
        shared="server params, inner state, clock",
        local="copy",
        sends="as downpour",
        when="unequal speeds, bounded staleness",
        paper="Ho et al. 2013",
    ),
    "delay_compensated": Entry(
        make=delay_compensated,
        tier=2,
        rule="x += inner(g + strength g g (x - x_i)); x_i <- x",
        shared="server params, inner state, clock",
        local="copy",
        sends="2 size(params) a step to all; sharded server: 3 size(params)",
        when="very stale gradients of a log-likelihood",
        paper="arXiv:1609.08326",
    ),
    "hogwild": Entry(
        make=hogwild,
        tier=2,
        rule="downpour with torn reads: a component is missed with probability `missed`",
        shared="params, inner state, clock",
        local="what was read",
        sends="as downpour",
        when="to study updates without locks",
        paper="arXiv:1106.5730",
    ),
    "elastic_averaging": Entry(
        make=elastic_averaging,
        tier=2,
        rule="x_i += u_i - a (x_i - z); z += a sum_i (x_i - z)",
        shared="center (and clock)",
        local="params, inner state",
        sends="size(params) every `period` steps; with a clock every step",
        when="workers that should explore",
        paper="arXiv:1412.6651",
    ),
    "pairwise": Entry(
        make=pairwise,
        tier=2,
        rule="whoever is ready: x_i <- (x_i + x_j) / 2 + u_i(y_i); y_i <- x_i",
        shared="clock",
        local="params, copy, inner state",
        sends="size(params) a step",
        when="unequal speeds and no server",
        paper="arXiv:1710.06952",
    ),
    "delayed": Entry(
        make=delayed,
        tier=2,
        rule="x(t+1) = x(t) + inner(mean g(x(t - delay)))",
        shared="the last delay + 1 params, inner state",
        local="-",
        sends="size(params) a step",
        when="to study staleness alone",
        paper="arXiv:0911.0491",
    ),
}

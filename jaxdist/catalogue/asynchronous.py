"""Methods in which workers are stale: a parameter server, or neighbors, at everybody's own pace."""

from jaxdist.algorithms.delayed import delayed
from jaxdist.catalogue.entry import Entry

ENTRIES: dict[str, Entry] = {
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

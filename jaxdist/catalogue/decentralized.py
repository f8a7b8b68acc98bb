"""Methods in which a worker talks to its neighbors only."""

from jaxdist.algorithms.gossip import gossip
from jaxdist.catalogue.entry import Entry

ENTRIES: dict[str, Entry] = {
    "gossip": Entry(
        make=gossip,
        tier=1,
        rule="x_i <- sum_j W(t)_ij (x_j + u_j)",
        shared="-",
        local="params, inner state",
        sends="degree x size(params) a step",
        when="no global reduction; links to neighbors only",
        paper="arXiv:1705.09056",
    ),
}

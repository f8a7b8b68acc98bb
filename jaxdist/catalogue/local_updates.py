"""Methods with many steps on one's own data between two messages."""

from jaxdist.algorithms.diloco import diloco
from jaxdist.algorithms.local_sgd import local_sgd
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
}

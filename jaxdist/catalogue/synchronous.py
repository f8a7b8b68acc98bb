"""Methods in which all workers take the same step."""

from jaxdist.algorithms.all_reduce import all_reduce
from jaxdist.catalogue.entry import Entry

ENTRIES: dict[str, Entry] = {
    "all_reduce": Entry(
        make=all_reduce,
        tier=1,
        rule="x += inner(mean g)",
        shared="params, inner state",
        local="-",
        sends="size(params) a step",
        when="a fast network; the baseline",
        paper="arXiv:1706.02677",
    ),
}

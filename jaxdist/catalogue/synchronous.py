"""Methods in which all workers take the same step."""

from jaxdist.algorithms.all_reduce import all_reduce
from jaxdist.algorithms.lbfgs import lbfgs
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
    "lbfgs": Entry(
        make=lbfgs,
        tier=1,
        rule="x -= a H mean g, a by line search on mean f",
        shared="params, step length",
        local="1/W of 2 memory + 2 vectors",
        sends="size(params) (1 + 1/W) a step, 2 numbers a trial",
        when="full batches, smooth models",
        paper="Dean et al. 2012",
    ),
}

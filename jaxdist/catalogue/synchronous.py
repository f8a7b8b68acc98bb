"""Methods in which all workers take the same step."""

from jaxdist.algorithms.all_reduce import all_reduce
from jaxdist.algorithms.gradient_noise import adascale, noise_scale
from jaxdist.algorithms.lbfgs import lbfgs
from jaxdist.algorithms.sharded_all_reduce import sharded_all_reduce
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
    "sharded_all_reduce": Entry(
        make=sharded_all_reduce,
        tier=1,
        rule="x += inner(mean g), each worker a part of it",
        shared="params",
        local="1/W of the inner state",
        sends="size(params) (1 + 1/W) a step",
        when="an optimizer state that does not fit",
        paper="arXiv:1910.02054",
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
    "noise_scale": Entry(
        make=noise_scale,
        tier=2,
        rule="x += inner(mean g); reports the noise scale",
        shared="params, inner state, two averages",
        local="-",
        sends="size(params) + 1 number a step",
        when="how many workers still pay",
        paper="arXiv:1812.06162",
    ),
    "adascale": Entry(
        make=adascale,
        tier=2,
        rule="x += r inner(mean g), r in [1, W] the gain of averaging",
        shared="params, inner state, tau, two averages",
        local="-",
        sends="size(params) + 1 number a step",
        when="a rate that need not be tuned again for more workers",
        paper="arXiv:2007.05105",
    ),
}

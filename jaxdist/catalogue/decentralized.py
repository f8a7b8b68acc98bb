"""Methods in which a worker talks to its neighbors only."""

from jaxdist.algorithms.event_triggered import event_triggered
from jaxdist.algorithms.exact_diffusion import d2, exact_diffusion, extra
from jaxdist.algorithms.gossip import gossip
from jaxdist.algorithms.gradient_tracking import gradient_tracking
from jaxdist.algorithms.neighbor_momentum import decentlam, quasi_global_momentum
from jaxdist.algorithms.push_sum import push_sum
from jaxdist.algorithms.relay import relay
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
    "push_sum": Entry(
        make=push_sum,
        tier=1,
        rule="n_i <- sum_j A(t)_ij (n_j + u_j), w likewise without u; x = n / w",
        shared="-",
        local="n, w, inner state, `delay` messages",
        sends="degree x (size(params) + 4) a step",
        when="one-way links; messages that arrive late, or compressed",
        paper="arXiv:1811.10792",
    ),
    "gradient_tracking": Entry(
        make=gradient_tracking,
        tier=1,
        rule="y_i tracks the mean gradient; x_i <- sum_j W(t)_ij (x_j + inner(y_j))",
        shared="-",
        local="params, tracker, inner state",
        sends="2 x degree x size(params) a step",
        when="unlike data; directed or varying graphs; any inner rule",
        paper="arXiv:1607.03218",
    ),
    "exact_diffusion": Entry(
        make=exact_diffusion,
        tier=1,
        rule="phi = x + u + d; x' = (phi + W phi) / 2; d += x' - phi",
        shared="-",
        local="params, correction d, inner state",
        sends="degree x size(params) a step",
        when="unlike data, for the bytes of gossip; one undirected graph",
        paper="arXiv:1702.05122",
    ),
    "d2": Entry(
        make=d2,
        tier=2,
        rule="phi = x + u + d; x' = W phi; d += x' - phi",
        shared="-",
        local="params, correction d, inner state",
        sends="degree x size(params) a step",
        when="as exact_diffusion, where W has no eigenvalue below -1/3",
        paper="arXiv:1803.07068",
    ),
    "extra": Entry(
        make=extra,
        tier=2,
        rule="x' = W x + u + d; d += (W x - x) / 2",
        shared="-",
        local="params, correction d, inner state",
        sends="degree x size(params) a step",
        when="as exact_diffusion, with the exchange behind the backward pass",
        paper="arXiv:1404.6264",
    ),
    "quasi_global_momentum": Entry(
        make=quasi_global_momentum,
        tier=1,
        rule="x_i' = sum_j W(t)_ij (x_j - lr (b m_j + g_j)); m_i' = b m_i + (1 - b) (x_i - x_i') / lr",
        shared="-",
        local="params, memory",
        sends="degree x size(params) a step",
        when="gossip with momentum on data that differ",
        paper="arXiv:2102.04761",
    ),
    "decentlam": Entry(
        make=decentlam,
        tier=2,
        rule="m_i' = b m_i + (x_i - sum_j W(t)_ij (x_j - lr g_j)) / lr; x_i' = x_i - lr m_i'",
        shared="-",
        local="params, memory",
        sends="degree x size(params) a step",
        when="large batches, momentum without its bias",
        paper="arXiv:2104.11981",
    ),
    "relay": Entry(
        make=relay,
        tier=2,
        rule="x_i <- 1/n sum_j (x_j + u_j), each as many steps old as its way along a tree is long",
        shared="-",
        local="params, inner state, a message for each neighbor",
        sends="highest degree of the tree x size(params) a step",
        when="data that differ very much, links that form a tree",
        paper="arXiv:2110.04175",
    ),
    "event_triggered": Entry(
        make=event_triggered,
        tier=2,
        rule="s_i <- v_i = x_i + u_i where norm(v_i - s_i) > threshold; x_i <- v_i + sum_j W(t)_ij s_j - s_i",
        shared="part of the messages that was due",
        local="params, inner state, what was last said",
        sends="degree x size(params) a step; a network would carry the part that was due",
        when="to know how many messages gossip could save",
        paper="arXiv:1910.14280",
    ),
}

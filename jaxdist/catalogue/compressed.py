"""Methods that are made for compressed messages; others take a compressor as an argument."""

from jaxdist.algorithms.choco import choco
from jaxdist.algorithms.demo import demo
from jaxdist.algorithms.dgc import dgc
from jaxdist.algorithms.one_bit_adam import one_bit_adam
from jaxdist.algorithms.sign_majority import sign_majority
from jaxdist.catalogue.entry import Entry

ENTRIES: dict[str, Entry] = {
    "choco": Entry(
        make=choco,
        tier=1,
        rule="h_i += C(x_i + u_i - h_i); x_i += u_i + c sum_j W_ij (h_j - h_i)",
        shared="-",
        local="params, inner state, two copies",
        sends="degree x payload a step",
        when="gossip over slow links",
        paper="arXiv:1902.00340",
    ),
    "sign_majority": Entry(
        make=sign_majority,
        tier=2,
        rule="x += inner(sign(sum sign g_i))",
        shared="params, inner state",
        local="-",
        sends="one bit a number, and 1/W of that",
        when="very slow networks, similar data",
        paper="arXiv:1810.05291",
    ),
    "one_bit_adam": Entry(
        make=one_bit_adam,
        tier=2,
        rule="Adam; after a warm-up v is frozen and m is a mean of signs with residuals",
        shared="params, both moments",
        local="two residuals",
        sends="size(params), then one bit a number, a step",
        when="Adam on slow networks",
        paper="arXiv:2102.02888",
    ),
    "dgc": Entry(
        make=dgc,
        tier=2,
        rule="u_i = m u_i + g_i; v_i += lr u_i; x -= mean top_k(v_i), cleared in v_i and u_i",
        shared="params",
        local="velocity, what waits",
        sends="values and indices of the largest, a step",
        when="momentum on slow networks",
        paper="arXiv:1712.01887",
    ),
    "demo": Entry(
        make=demo,
        tier=2,
        rule="m_i = d m_i + g_i; q_i = top DCT of m_i; m_i -= q_i; x += inner(mean q)",
        shared="params, inner state",
        local="momentum",
        sends="values and indices of the largest frequencies, a step",
        when="large models on slow networks",
        paper="arXiv:2411.19870",
    ),
}

"""Twins: every algorithm again, as a dense NumPy recursion in float64, one line for one equation.

They are the oracle that the package is held to, so they share nothing with it. A twin is called
`twin(problem, steps, x0, **arguments)` and returns a Trace; all workers start at x0, optimisers are
values of `twins.inner`, a mixing matrix is a function of the step, row = receiver. Where a paper
leaves a choice, the docstring says which one was taken.
"""

from . import asynchronous, compressed, gossip, local_updates, synchronous
from .inner import Inner, adagrad, adam, momentum, sgd
from .local_updates import fedprox, scaffold
from .problem import Problem, Trace, quadratic

TWINS = {
    "all_reduce": synchronous.all_reduce,
    "sharded_all_reduce": synchronous.sharded_all_reduce,
    "sign_majority": synchronous.sign_majority,
    "lbfgs": synchronous.lbfgs,
    "noise_scale": synchronous.all_reduce,
    "adascale": synchronous.adascale,
    "local_sgd": local_updates.local_sgd,
    "slow_momentum": local_updates.slow_momentum,
    "block_momentum": local_updates.block_momentum,
    "diloco": local_updates.diloco,
    "streaming_diloco": local_updates.streaming_diloco,
    "federated": local_updates.federated,
    "elastic_averaging": local_updates.elastic_averaging,
    "one_bit_adam": compressed.one_bit_adam,
    "dgc": compressed.dgc,
    "demo": compressed.demo,
    "gossip": gossip.gossip,
    "push_sum": gossip.push_sum,
    "compressed_push_sum": compressed.push_sum,
    "gradient_tracking": gossip.gradient_tracking,
    "push_diging": gossip.push_diging,
    "exact_diffusion": gossip.exact_diffusion,
    "d2": gossip.d2,
    "extra": gossip.extra,
    "quasi_global_momentum": gossip.quasi_global_momentum,
    "decentlam": gossip.decentlam,
    "relay": gossip.relay,
    "choco": gossip.choco,
    "pairwise": gossip.pairwise,
    "event_triggered": gossip.event_triggered,
    "delayed": asynchronous.delayed,
    "downpour": asynchronous.downpour,
    "stale_synchronous": asynchronous.stale_synchronous,
    "delay_compensated": asynchronous.delay_compensated,
    "hogwild": asynchronous.hogwild,
    "elastic_averaging_arrivals": asynchronous.elastic_averaging_arrivals,
}

__all__ = [
    "TWINS", "Inner", "Problem", "Trace", "adagrad", "adam", "fedprox", "momentum", "quadratic",
    "scaffold", "sgd",
]  # fmt: skip

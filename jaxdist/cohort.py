"""Which client each worker is in each round: the same numbers on the host and inside a compiled step.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS
2017. arXiv:1602.05629
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.errors import Refused

# What a number is drawn for: two draws of one round and worker must not be the same number.
CLIENT, WORKER = 1, 2


@dataclass(frozen=True)
class Cohort:
    """Who takes part in a round, as a pure function of the seed and the round.

    The clients are dealt to the workers in equal blocks: worker w owns w n to (w + 1) n - 1, with
    n = clients / workers, and keeps what must be kept of them. In each round it draws one of its own,
    evenly and independently of all other rounds; of the workers, `clients_per_round` are drawn,
    without replacement.

    The numbers come from a hash of (seed, round, worker) in 32-bit integers, which are the same in
    NumPy, in JAX and on every device. So the data stream (on the host) and the algorithm (in the
    compiled step) need not tell each other who was drawn: they need the same seed.

    Attributes:
      clients: how many there are.
      workers: how many take part in a round at the most; divides the clients.
      seed: at least 0, below 2**64.
      clients_per_round: how many take part.
    """

    clients: int
    workers: int
    seed: int
    clients_per_round: int

    def __call__(self, round: Any) -> Any:
        """The client that each worker draws: int32 [workers].

        Args:
          round: an integer from 0 on, or a traced one (then the result is traced too).
        """
        own = self.clients // self.workers
        xp = _numbers(round)
        first = own * np.arange(self.workers, dtype=np.int32)
        return first + (self._hash(CLIENT, round) % np.uint32(own)).astype(xp.int32)

    def delivers(self, round: Any, *, alive: Any = None) -> Any:
        """Whether each worker takes part: bool [workers], `clients_per_round` of them true.

        Args:
          round: as above.
          alive: bool [workers], of whom they are drawn (all of them, if there are no more); None: all.
        """
        xp = _numbers(round)
        order = xp.argsort(self._hash(WORKER, round), stable=True)
        if alive is None:
            return xp.argsort(order, stable=True) < self.clients_per_round
        order = order[xp.argsort(~alive[order], stable=True)]
        return (xp.argsort(order, stable=True) < self.clients_per_round) & alive

    def _hash(self, purpose: int, round: Any) -> Any:
        """32 bits for each worker. The mixer is the finalizer of MurmurHash3."""
        xp = _numbers(round)
        h = xp.arange(self.workers, dtype=xp.uint32)
        seeds = np.uint32(self.seed % 2**32), np.uint32(self.seed >> 32)
        for number in (*seeds, np.uint32(purpose), xp.asarray(round).astype(xp.uint32)):
            h = h * np.uint32(0x9E3779B1) + number + np.uint32(0x7F4A7C15)
            h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
            h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            h = h ^ (h >> np.uint32(16))
        return h


def _numbers(round: Any) -> Any:
    return jnp if isinstance(round, jax.Array) else np


def cohort(
    clients: int, workers: int, seed: int = 0, *, clients_per_round: int | None = None
) -> Cohort:
    """Who takes part in each round of federated learning, for the data stream.

    `jd.federated` draws the same clients inside the compiled step if it is given the same numbers.

    Args:
      clients: how many there are; the workers divide it.
      workers: how many workers.
      seed: the seed that `jd.federated` is given.
      clients_per_round: how many workers take part in a round; None: all.

    Returns:
      A `Cohort`: called with a round it gives the client of each worker, int32 [workers].

    Raises:
      Refused: clients that the workers do not divide, a part of the workers that is empty or more
        than all, a seed below 0.

    Example:
      >>> drawn = cohort(1000, 4, 0)
      >>> print(drawn(0), drawn(1))
      [ 61 474 500 962] [ 99 464 629 942]
      >>> int(cohort(8, 8, 0, clients_per_round=3).delivers(5).sum())
      3
    """
    for name, value in (("clients", clients), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Refused(f"{name}={value!r}: expected a positive integer; write {name}=8")
    if clients % workers:
        raise Refused(
            f"clients={clients} can not be dealt evenly to {workers} workers; write "
            f"clients={max(clients // workers, 1) * workers}"
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise Refused(f"seed={seed!r}: expected an integer from 0 to 2**64 - 1; write seed=0")
    part = workers if clients_per_round is None else clients_per_round
    if isinstance(part, bool) or not isinstance(part, int) or not 1 <= part <= workers:
        raise Refused(
            f"clients_per_round={part!r} of {workers} workers: a worker is one client in a round; write "
            f"clients_per_round={workers} or fewer, or give jd.execute more workers"
        )
    return Cohort(clients, workers, seed, part)

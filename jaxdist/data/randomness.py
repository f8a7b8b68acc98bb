"""A NumPy generator from a seed and the counters that name what is drawn."""

import numpy as np

from jaxdist.errors import Refused


def generator(seed: int, *counters: int) -> np.random.Generator:
    """A generator that is a pure function of the seed and the counters.

    Streams with different counters are independent, and no state passes from one draw to the next:
    that is what lets a batch be drawn out of order and a run be resumed from one integer.

    Example:
      >>> a, b = generator(0, 3), generator(0, 3)
      >>> bool((a.permutation(100) == b.permutation(100)).all())
      True
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise Refused(f"seed={seed!r}: expected an integer, zero or more; write seed=0")
    return np.random.default_rng((int(seed), *counters))

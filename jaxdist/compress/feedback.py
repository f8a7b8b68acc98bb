"""Compressors with a memory of what they left out, and low-rank reduction: values that a reduction reads.

Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014 (error feedback).
Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.
arXiv:1901.09847
Richtarik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
Feedback, NeurIPS 2021. arXiv:2106.05203
Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression, NeurIPS 2019.
arXiv:1905.13727
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxdist.compress.base import Compressor, PyTree, check_compressor, check_count, contractive
from jaxdist.errors import Refused

Schedule = Callable[[Any], Any]


class Feedback(NamedTuple):
    """A compressor with a memory.

    Attributes:
      name: how it was made.
      compressor: what travels; made contractive.
      rule: what is remembered.
      learning_rate: by which the residual is rescaled, see `error_feedback`.
    """

    name: str
    compressor: Compressor
    rule: Literal["error_feedback", "ef21"]
    learning_rate: Schedule | None = None

    def __repr__(self) -> str:
        return self.name

    def bytes(self, like: PyTree) -> int:
        """How many bytes its payload has: those of its compressor's."""
        return self.compressor.bytes(like)


def error_feedback(compressor: Compressor, *, learning_rate: Schedule | None = None) -> Feedback:
    """What was left out of one message is added to the next.

        p = x + e;   sent = C(p);   e' = p - sent

    so that everything arrives, if late. An unbiased C is shrunk to C / (1 + error), for else the
    residual e may grow without bound. Where the mean is compressed once more (see `jd.all_reduce`), that
    step has a residual of its own.

    In `jd.all_reduce` the residual is one of gradients, and the learning rate stands outside, in
    `inner`: what is left over from a step with a large learning rate would be applied with a later, small
    one. Where the learning rate moves, give it here too, and the residual is rescaled by
    learning_rate(t - 1) / learning_rate(t), which keeps it what it is when the learning rate stands
    inside. In `jd.diloco` displacements travel, which contain the learning rate of `inner`; what may move is
    that of `outer`, and it is a function of the number of outer steps.

    Args:
      compressor: what travels.
      learning_rate: the schedule of the rule that the mean is given to; None: it is constant.

    Example:
      >>> from jaxdist import compress
      >>> error_feedback(compress.top_k(0.01))
      error_feedback(top_k(0.01))
    """
    check_compressor("jd.compress.error_feedback", compressor)
    _check_schedule("error_feedback", learning_rate)
    name = f"error_feedback({compressor!r})"
    return Feedback(name, contractive(compressor), "error_feedback", learning_rate)


def ef21(compressor: Compressor) -> Feedback:
    """Everybody keeps an estimate of what is to be sent, and sends what is new against it.

        sent = C(x - h);   h' = h + sent;   the others go on with h'

    Nothing is owed, so a learning rate may move freely; and where x settles, so does h, at x itself:
    it converges where gradients that differ between workers keep a residual alive. An unbiased C is
    shrunk to C / (1 + error). h starts at 0.

    Args:
      compressor: what travels.

    Example:
      >>> from jaxdist import compress
      >>> ef21(compress.top_k(0.01))
      ef21(top_k(0.01))
    """
    check_compressor("jd.compress.ef21", compressor)
    return Feedback(f"ef21({compressor!r})", contractive(compressor), "ef21")


class PowerSGD(NamedTuple):
    """Low-rank reduction; made by `power_sgd`.

    Attributes:
      rank: columns that travel for each matrix.
      start: how many first steps are reduced exactly.
      learning_rate: by which the residual is rescaled, see `error_feedback`.
    """

    rank: int
    start: int
    learning_rate: Schedule | None

    def __repr__(self) -> str:
        return f"power_sgd({self.rank})"


def power_sgd(rank: int, *, start: int = 0, learning_rate: Schedule | None = None) -> PowerSGD:
    """PowerSGD, a reducer: of the mean of many matrices, the best of low rank, nearly.

    With M_i worker i's gradient of a leaf as a matrix [n, m] (the first axis against all others) plus its
    residual, and Q [m, rank] from the step before,

        P = orthonormal(mean M_i Q);   Q_i = M_i^T P;   Q = mean Q_i
        the mean is taken to be P Q^T;   e_i = M_i - P Q_i^T

    Two reductions, the second of which depends on the first. Q is a warm start: one step of a power
    iteration a step. Vectors, scalars, and matrices that would not get smaller are reduced exactly,
    with the first.

    Args:
      rank: columns that travel for each matrix.
      start: how many first steps are reduced exactly.
      learning_rate: the schedule of the rule that the mean is given to, by which the residual is
        rescaled as in `error_feedback`; None: it is constant.

    Example:
      >>> import jaxdist as jd, optax
      >>> algorithm = jd.all_reduce(optax.sgd(0.1), reducer=jd.compress.power_sgd(2))
    """
    check_count("power_sgd(4)", rank)
    check_count("power_sgd(4, start=100)", start, least=0)
    _check_schedule("power_sgd", learning_rate)
    return PowerSGD(rank, start, learning_rate)


def _check_schedule(name: str, learning_rate: Any) -> None:
    if learning_rate is not None and not callable(learning_rate):
        raise Refused(
            f"jd.compress.{name} needs a schedule, a function of the step, or no learning_rate at all if it "
            f"is constant, and was given {learning_rate!r}; leave it out"
        )

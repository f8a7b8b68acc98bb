"""Arrays to payloads and back: what travels when a whole array would be too much."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxdist.compress.base import Compressor as Compressor
from jaxdist.compress.base import contractive as contractive
from jaxdist.compress.feedback import Feedback as Feedback
from jaxdist.compress.feedback import PowerSGD as PowerSGD
from jaxdist.compress.feedback import ef21 as ef21
from jaxdist.compress.feedback import error_feedback as error_feedback
from jaxdist.compress.feedback import power_sgd as power_sgd
from jaxdist.compress.quantize import cast as cast
from jaxdist.compress.quantize import int4 as int4
from jaxdist.compress.quantize import int8 as int8
from jaxdist.compress.quantize import qsgd as qsgd
from jaxdist.compress.quantize import ternary as ternary
from jaxdist.compress.sign import sign as sign
from jaxdist.compress.sparsify import dct_top_k as dct_top_k
from jaxdist.compress.sparsify import random_k as random_k
from jaxdist.compress.sparsify import top_k as top_k

# By name, compressors as the laws run them.
CATALOGUE: dict[str, Callable[[], Compressor]] = {
    "cast to bfloat16": lambda: cast(jnp.bfloat16),
    "cast to float16": lambda: cast(jnp.float16),
    "cast to float8": lambda: cast(jnp.float8_e4m3fn),
    "int8": lambda: int8(4),
    "int4": lambda: int4(4),
    "qsgd": lambda: qsgd(4),
    "ternary": ternary,
    "sign": sign,
    "top_k": lambda: top_k(0.3),
    "random_k": lambda: random_k(0.3),
    "dct_top_k": lambda: dct_top_k(2, chunk=4),
}

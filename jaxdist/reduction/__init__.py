"""Everybody gets the same mean: exact, in shares, of compressed payloads, with a memory, of low rank."""

from jaxdist.reduction.base import Reducer as Reducer
from jaxdist.reduction.base import mean as mean
from jaxdist.reduction.base import mean_bytes as mean_bytes
from jaxdist.reduction.reducers import reducer as reducer
from jaxdist.reduction.routes import Average as Average
from jaxdist.reduction.routes import average as average
from jaxdist.reduction.routes import average_bytes as average_bytes
from jaxdist.reduction.shares import gathered as gathered
from jaxdist.reduction.shares import scattered_mean as scattered_mean
from jaxdist.reduction.votes import majority as majority
from jaxdist.reduction.votes import majority_bytes as majority_bytes

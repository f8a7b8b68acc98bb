"""Data sets, their split over workers, and streams of batches; none of them knows of algorithms."""

from jaxdist.data import digits as digits
from jaxdist.data import split as split
from jaxdist.data import tfds as tfds
from jaxdist.data.checks import check_batch as check_batch
from jaxdist.data.prefetching import prefetch as prefetch
from jaxdist.data.preparing import prepare as prepare
from jaxdist.data.stream import Stream as Stream
from jaxdist.data.uneven import deal as deal

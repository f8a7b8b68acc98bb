"""Simulated compute times: in-graph, exact, the same for the same seed."""

from jaxdist.clock.base import Clock as Clock
from jaxdist.clock.base import Tick as Tick
from jaxdist.clock.base import Times as Times
from jaxdist.clock.base import duration as duration
from jaxdist.clock.base import later as later
from jaxdist.clock.durations import constant as constant
from jaxdist.clock.durations import exponential_tail as exponential_tail
from jaxdist.clock.durations import lognormal as lognormal
from jaxdist.clock.durations import periodic_straggler as periodic_straggler
from jaxdist.clock.durations import speeds as speeds
from jaxdist.clock.traces import failures as failures
from jaxdist.clock.traces import pauses as pauses
from jaxdist.clock.traces import recorded as recorded
from jaxdist.clock.traces import with_messages as with_messages

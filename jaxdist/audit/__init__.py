"""What a step sends, computes and needs: the lowered program, and the one that XLA makes of it."""

from jaxdist.audit.inspection import Inspection as Inspection
from jaxdist.audit.inspection import inspect as inspect
from jaxdist.audit.inspection import table as table
from jaxdist.audit.stablehlo import Collective as Collective
from jaxdist.audit.stablehlo import bytes_by_branch as bytes_by_branch
from jaxdist.audit.stablehlo import collectives as collectives
from jaxdist.audit.traffic import Transfer as Transfer

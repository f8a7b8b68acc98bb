"""The public names, `import jaxdist as jd`, grouped by floor."""

# Who talks to whom.
from jaxdist import audit as audit
from jaxdist import data as data
from jaxdist import models as models
from jaxdist import tasks as tasks
from jaxdist import topology as topology
from jaxdist import worker as worker

# Methods.
from jaxdist.algorithms.all_reduce import all_reduce as all_reduce
from jaxdist.algorithms.base import Algorithm as Algorithm
from jaxdist.algorithms.base import State as State
from jaxdist.algorithms.diloco import diloco as diloco
from jaxdist.algorithms.gossip import gossip as gossip
from jaxdist.algorithms.local_sgd import local_sgd as local_sgd

# Running them.
from jaxdist.executor import Evaluation as Evaluation
from jaxdist.executor import Trainer as Trainer
from jaxdist.executor import execute as execute
from jaxdist.experiment import Experiment as Experiment
from jaxdist.mixing import mix as mix
from jaxdist.optax_adapter import as_optax as as_optax
from jaxdist.reduction import mean as mean

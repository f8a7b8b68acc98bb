"""The public names, `import jaxdist as jd`, grouped by floor; what type checkers read is what runs."""

__version__: str

# Who talks to whom.
from . import audit as audit
from . import data as data
from . import faults as faults
from . import models as models
from . import tasks as tasks
from . import topology as topology
from . import worker as worker

# Methods.
from .algorithms.all_reduce import all_reduce as all_reduce
from .algorithms.base import Algorithm as Algorithm
from .algorithms.base import State as State
from .algorithms.diloco import diloco as diloco
from .algorithms.event_triggered import event_triggered as event_triggered
from .algorithms.exact_diffusion import d2 as d2
from .algorithms.exact_diffusion import exact_diffusion as exact_diffusion
from .algorithms.exact_diffusion import extra as extra
from .algorithms.faulty import faulty as faulty
from .algorithms.gossip import gossip as gossip
from .algorithms.gradient_tracking import gradient_tracking as gradient_tracking
from .algorithms.local_sgd import local_sgd as local_sgd
from .algorithms.neighbor_momentum import decentlam as decentlam
from .algorithms.neighbor_momentum import quasi_global_momentum as quasi_global_momentum
from .algorithms.push_sum import push_sum as push_sum
from .algorithms.relay import relay as relay

# Running them.
from .executor import Evaluation as Evaluation
from .executor import Trainer as Trainer
from .executor import execute as execute
from .experiment import Experiment as Experiment
from .mixing import mix as mix
from .optax_adapter import as_optax as as_optax
from .reduction import mean as mean

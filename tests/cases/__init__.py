"""The catalogue as the laws run it: for every method its arguments, those of its twin, its branches."""

from cases import asynchronous, compressed, decentralized, local_updates, synchronous
from cases.base import Case as Case
from cases.base import flat as flat
from cases.base import loss as loss
from cases.base import over as over
from cases.base import recurrent_loss as recurrent_loss
from cases.base import start as start

FAMILIES = [
    module.CASES for module in (synchronous, local_updates, decentralized, asynchronous, compressed)
]
CASES: dict[str, dict[str, Case]] = {k: own for family in FAMILIES for k, own in family.items()}

ALL = [(name, label) for name, cases in CASES.items() for label in cases]


def case(name: str, label: str) -> Case:
    """The case of that name."""
    return CASES[name][label]

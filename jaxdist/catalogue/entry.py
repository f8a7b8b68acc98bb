"""What the catalogue says of one method."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple


class Entry(NamedTuple):
    """One method of the catalogue.

    Attributes:
      make: the public function that makes it.
      tier: 1 for methods that can never break, 2 for all others.
      rule: the rule in a line, for tables.
      shared: what all workers agree on.
      local: what each worker keeps.
      sends: bytes handed to the network, in words.
      when: when to use it.
      paper: where it was published.
    """

    make: Callable[..., Any]
    tier: Literal[1, 2]
    rule: str
    shared: str
    local: str
    sends: str
    when: str
    paper: str

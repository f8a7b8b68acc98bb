"""What the environment says of this process: its number, and how many there are. No JAX."""

import os

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT, MINE = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def expected() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) where only JAX can find it out.

    Raises:
      ValueError: a variable holds no number.
    """
    if not os.environ.get(ADDRESS):
        return 0, 1
    count = number(COUNT) or 1
    return min(number(MINE) or 0, count - 1), count


def number(variable: str) -> int | None:
    """What a variable holds; None: it is not set.

    Raises:
      ValueError: it holds something else than a number, zero or more.
    """
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise ValueError(
            f"{variable}={text!r}: expected a number, zero or more; write {variable}=0"
        )
    return int(text) if text else None

"""Who listens on a port of this host, and who is connected to it, as the kernel has it.

JAX says nothing of who has joined until all have. Elsewhere than on Linux everything here is empty.
"""

import contextlib
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LISTENING, ESTABLISHED = "0A", "01"
TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")


class Connection(NamedTuple):
    """One line of the kernel's tables: two ends, as address and port, and a state."""

    here: tuple[str, int]
    there: tuple[str, int]
    state: str


def listening(port: int) -> list[str]:
    """The addresses on which somebody of this host listens on a port.

    Example:
      >>> import socket
      >>> with socket.create_server(("127.0.0.1", 0)) as server:
      ...     listening(server.getsockname()[1])
      ['127.0.0.1']
    """
    return [c.here[0] for c in _all() if c.state == LISTENING and c.here[1] == port]


def joined(port: int) -> list[str]:
    """Where the connections to a port of this host come from: one address for each.

    Example:
      >>> import socket
      >>> with socket.create_server(("127.0.0.1", 0)) as server:
      ...     port = server.getsockname()[1]
      ...     with socket.create_connection(("127.0.0.1", port)):
      ...         joined(port)
      ['127.0.0.1']
    """
    return [c.there[0] for c in _all() if c.state == ESTABLISHED and c.here[1] == port]


def reaches(port: int) -> bool:
    """Whether somebody of this host is connected to a port, wherever that is."""
    return any(c.state == ESTABLISHED and c.there[1] == port for c in _all())


def _all() -> Iterator[Connection]:
    for table in TABLES:
        with contextlib.suppress(OSError):
            for line in table.read_text("ascii").splitlines()[1:]:
                _, here, there, state, *_ = line.split()
                yield Connection(_end(here), _end(there), state)


def _end(text: str) -> tuple[str, int]:
    """`0100007F:1F90` -> `("127.0.0.1", 8080)`: words of 32 bits as the host has them."""
    address, port = text.split(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    found = ipaddress.ip_address(b"".join(words))
    # An address of IPv4 may be written as one of IPv6.
    return str(getattr(found, "ipv4_mapped", None) or found), int(port, 16)

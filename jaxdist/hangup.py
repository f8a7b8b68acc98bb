"""A terminal that goes away, as with a closed ssh session: its signal, and lines that nobody hears then."""

import errno
import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO, cast

NUMBER = signal.SIGHUP


class Stream(NamedTuple):
    """A stream, as far as `print` and rich use one; what the names mean is in `io`."""

    write: Callable[[str], int]
    flush: Callable[[], None]
    isatty: Callable[[], bool]
    fileno: Callable[[], int]
    encoding: str


def heeded() -> bool:
    """Whether it is a request to stop: nohup ignores it, and so it stays."""
    return signal.getsignal(NUMBER) != signal.SIG_IGN


def counts(number: int, before: int) -> bool:
    """Whether a signal is one more request to stop, where there were so many before it.

    A terminal that goes says so more than once, by the kernel and by the shell: it never means "at once".

    >>> counts(signal.SIGHUP, 0), counts(signal.SIGHUP, 1), counts(signal.SIGTERM, 1)
    (True, False, True)
    """
    return number != NUMBER or not before


def survived(stream: TextIO) -> TextIO:
    """The same stream, which goes nowhere once its terminal is gone: a line is not worth a run."""

    def unless_gone(do: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            try:
                return do(*given)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
            # Also what waits in a buffer, which would be an error at the end of the process.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            return 0

        return done

    encoding = getattr(stream, "encoding", None) or "utf-8"
    write, flush = unless_gone(stream.write), unless_gone(stream.flush)
    return cast(TextIO, Stream(write, flush, stream.isatty, stream.fileno, encoding))


def say(line: str, stream: TextIO) -> None:
    """Prints a line, if there is anybody."""
    print(line, file=survived(stream), flush=True)

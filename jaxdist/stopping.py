"""Ctrl-C, SIGTERM and a closed terminal as a question that the loop asks between two steps."""

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxdist import hangup

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked(say: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP do not end the process; a second one does, at once, but no SIGHUP.

    Yields:
      `stop(step)` -> whether to stop before this step. With several processes SIGTERM, and SIGHUP as one, is
      passed on to JAX, and all of them are told the same at the same step.

    Example:
      >>> with asked(print) as stop:
      ...     stop(0)
      ...     signal.raise_signal(signal.SIGTERM)
      ...     stop(1)
      False
      stopping: this step is saved; once more to stop at once
      True
    """
    if jax.process_count() > 1:
        with _second_ends(say):
            yield multihost_utils.reached_preemption_sync_point
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        for each in before:
            signal.signal(each, signal.SIG_IGN if each == hangup.NUMBER else signal.SIG_DFL)
        say("stopping: this step is saved; once more to stop at once")

    numbers = (*SIGNALS, hangup.NUMBER) if hangup.heeded() else SIGNALS
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda step: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _second_ends(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, the first SIGTERM is JAX's, and a second one, which JAX would swallow, ends the process.

    A thread counts them: the main one may be inside an exchange that never ends, where it runs no handler.
    A SIGHUP is a first SIGTERM.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    number = signal.SIGTERM
    of_jax = libc.signal(number, None)
    heard = ctypes.CFUNCTYPE(None, ctypes.c_int)(of_jax) if of_jax else lambda number: None
    here, there = socket.socketpair()
    there.setblocking(False)
    numbers = (number, hangup.NUMBER) if hangup.heeded() else (number,)
    before = {one: signal.signal(one, lambda number, frame: None) for one in numbers}
    woken = signal.set_wakeup_fd(there.fileno())

    def count() -> None:
        came = 0
        while data := here.recv(16):
            for one in data:
                if one not in numbers or not hangup.counts(one, came):
                    continue
                came += 1
                if came > 1:
                    libc.signal(number, None)
                    os.kill(os.getpid(), number)
                say("stopping: all processes save one step; once more to stop this one at once")
                heard(number)

    thread = threading.Thread(target=count, name="stopping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for one, handler in before.items():
            signal.signal(one, handler)
        libc.signal(number, of_jax)
        there.close()
        thread.join()
        here.close()

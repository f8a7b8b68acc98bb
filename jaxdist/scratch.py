"""A temporary folder that is gone however its process ends, by SIGKILL too."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Waits for the end of its input, which the kernel closes with the process that holds the other end.
REMOVE = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Inside, there is a folder of this process's own in the temporary folder.

    A small Python beside this process removes it, in a session of its own: what ends this process, or its
    whole group, does not end that one. A host that goes down leaves it.

    Example:
      >>> with folder() as made:
      ...     made.is_dir()
      True
      >>> made.exists()
      False
    """
    with tempfile.TemporaryDirectory(prefix="jaxdist-", ignore_cleanup_errors=True) as made:
        remover = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", REMOVE, made],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield Path(made)
        finally:
            remover.communicate()

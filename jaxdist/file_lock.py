"""A lock file of a local folder: held by the kernel, and looked at before each commit.

The kernel lets go of it however its process ends. But a file that was removed and made again is another one,
and some mounts (`nolock`, `localflock`) keep locks to their own host. So its owner also writes itself into
the file, and finds out before it commits when somebody else has done so since.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxdist.errors import NoRoom, Refused

# A process number and a host's name may come again, in containers above all.
TOKEN = secrets.token_hex(8)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def held(
    file: Path,
    *,
    of: Path,
    used: str = "is being written to by",
    keeps: Callable[[], bool] = lambda: False,
) -> Iterator[Callable[[], None]]:
    """Inside, the file is locked by this process.

    Args:
      file: the lock; made if need be, with all folders above it. A symbolic link is not followed.
      of: the folder that is locked, for messages.
      used: what somebody else does who holds it, in the message that says so.
      keeps: `keeps()`: whether there is a reason to leave the lock where it is when what is inside was
        refused. If not, whatever was made for it is removed again.

    Yields:
      `check()`: raises a NoRoom if the lock is not this process's any more.

    Raises:
      Refused: another process holds it, there can be no such file, or no locks where it is.
    """
    made = [folder for folder in file.parents if not folder.exists()]
    own = f"process {os.getpid()} on {socket.gethostname()}\n{TOKEN}\n"
    handle, created = None, False

    def check() -> None:
        found = _text(file)
        if handle is None or found != own or not _is(file, handle):
            end = "this run stops, and commits nothing"
            if not found:
                raise NoRoom(
                    f"the lock of {of} is gone: it was removed, or another process took it over; {end}"
                )
            raise NoRoom(f"{of} was taken over by {found.splitlines()[0]}: {end}")

    try:
        try:
            while handle is None:
                file.parent.mkdir(parents=True, exist_ok=True)
                handle, new = _opened(file)
                created = created or new
                _lock(handle, of, used)
                if not _is(file, handle):  # removed in between: what we have locked is nobody's
                    os.close(handle)
                    handle = None
            os.ftruncate(handle, 0)
            os.pwrite(handle, own.encode(), 0)
        except OSError as error:
            raise Refused(f"--workdir {of}: {_why(error)}; choose another") from None
        yield check
    except Refused:
        if created and (handle is None or _is(file, handle)) and not keeps():
            with contextlib.suppress(OSError):
                file.unlink()
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _opened(file: Path) -> tuple[int, bool]:
    """The file, open, and whether it was made."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileExistsError:
        handle = os.open(file, flags | os.O_CREAT, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileExistsError(errno.EEXIST, f"{file} is no file")
    return handle, False


def _lock(handle: int, of: Path, used: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 200, 0).decode(errors="replace").partition("\n")[0]
        raise Refused(
            f"--workdir {of} {used} {owner or 'another process'}: wait for it, or choose another"
        ) from None


def _why(error: OSError) -> str:
    if error.errno in NO_LOCKS:
        return (
            f"its file system has no locks ({error.strerror}), and nothing would keep a second writer "
            "out: mount it with locks (NFS: without nolock)"
        )
    if error.errno == errno.ELOOP:
        return f"its lock is a symbolic link ({error.filename}), which is not followed: remove it"
    return error.strerror or str(error)


def _text(file: Path) -> str:
    """What a lock says, as whoever opens it now is told; empty: there is none."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as lock:
        return lock.read(1000).decode(errors="replace")


def _is(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(file), os.fstat(handle))
    except OSError:
        return False

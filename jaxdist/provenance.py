"""Whether a run's record was written by this very user, and what has changed since it was written.

A config is a program, and a run's record names one. The folder of a run may be somebody else's: a copy, a
download, an archive that was unpacked together with files beside the run. Whoever made it wrote all of it:
the record, the text of the config in it, the path of a file that holds this very text, and that file itself,
which then belongs to who unpacked it. So neither the text nor the owner says that the program may run.

What is in no such folder is a key that each user has once, readable by nobody else. Records written here are
signed with it: path and text of the config, keywords, and what it imports. The config that a record names is
run where the signature is right, and the file still holds the same program. Else the user must name the
config, by `--config FILE`, and it is the user's program that is run then, on keywords and arrays from the
folder, which are data. What lies inside a run's folder is never run, not even if it is named.

Who can write to the user's own files, or is the user, is not kept out by this. What else a file names (data,
modules that the config imports) is found as Python finds it.
"""

import ast
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

KEY_BYTES = 32
SIGNED = ("config", "keywords", "source", "modules")


def sign(record: Mapping[str, Any]) -> str:
    """The signature of a record with this user's key, which is made if need be; empty: there can be none."""
    key = _key() or _made()
    return _signature(record, key) if key else ""


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether this user has signed a record."""
    key, given = _key(), record.get("signature")
    if key is None or not isinstance(given, str):
        return False
    return hmac.compare_digest(_signature(record, key).encode(), given.encode())


def same_program(then: str, now: str) -> bool:
    """Whether two texts differ in comments, docstrings and layout at most.

    >>> same_program("x = 1  # one", "# the first\\nx = 1"), same_program("x = 1", "x = 2")
    (True, False)
    """
    return then == now or _program(then) == _program(now) is not None


def difference(then: str, now: str) -> str:
    """The first line of a text that is another one now, in a few words.

    >>> difference("a = 1\\nb = 2\\n", "a = 1\\nb = 3\\n")
    "line 2: 'b = 2' then, 'b = 3' now"
    """
    old, new = then.splitlines(), now.splitlines()
    for number, (a, b) in enumerate(itertools.zip_longest(old, new, fillvalue=""), 1):
        if a != b:
            return f"line {number}: {a[:80]!r} then, {b[:80]!r} now"
    return "the ends of its lines"


def modules(file: Path) -> dict[str, str]:
    """What a config that has just been run imports of files that nobody installed, by their own names.

    Those beside it and below the working directory, and what they import in turn.

    Args:
      file: the config's.

    Returns:
      The SHA-256 of each file's text.
    """
    found: dict[str, str] = {}
    places = {file.resolve().parent, Path.cwd().resolve()}
    left = [file]
    while left:
        for name in _imports(left.pop()):
            module = sys.modules.get(name)
            if name not in found and (path := _own(module, places)):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
                left.append(path)
    return dict(sorted(found.items()))


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run is made of that was otherwise when its record was written: a line for each thing.

    Args:
      then: the record.
      now: the same of now; what it does not speak of is not compared.

    Example:
      >>> changed({"versions": {"jax": "1"}}, {"versions": {"jax": "2"}})
      ['jax was 1 and is 2']
    """
    said = []
    if (text := now.get("source", then.get("source"))) != then.get("source"):
        only = same_program(then["source"], text)
        what = "in comments or layout only" if only else "as a program"
        said.append(f"the config has changed {what}, {difference(then['source'], text)}")
    for field, word in (("modules", "module "), ("versions", "")):
        old, new = then.get(field), now.get(field)
        # A record of an earlier jaxdist does not speak of modules.
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            continue
        for name in sorted({*old, *new}):
            a, b = old.get(name), new.get(name)
            if field == "modules" and a and b and a != b:
                said.append(f"module {name} has another text")
            elif a != b:
                said.append(f"{word}{name} was {_short(a)} and is {_short(b)}")
    return said


def _short(value: Any) -> str:
    return "missing" if value is None else str(value)[:12]


def _program(text: str) -> str | None:
    """A text without what no interpreter looks at; None: it is no program."""
    try:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                documented = node.body and isinstance(node.body[0], ast.Expr)
                if documented and ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _imports(file: Path) -> Iterator[str]:
    """The names of all modules that a file may import by statements, at any depth."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):
            names = list(_relative(file, node))
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _relative(file: Path, node: ast.ImportFrom) -> Iterator[str]:
    """What `from . import a` may mean in a file: modules know their own packages."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(file) and module.__spec__:
            package = module.__spec__.parent or ""
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield whole
            yield from (f"{whole}.{alias.name}" for alias in node.names)


def _own(module: ModuleType | None, places: set[Path]) -> Path | None:
    """The file of a module in one of these places that is not an installed package's, nor Python's."""
    name = getattr(module, "__file__", None)
    if not name or not (file := Path(name).resolve()).is_file():
        return None
    installed = (Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent)
    if "site-packages" in file.parts or any(map(file.is_relative_to, installed)):
        return None
    return file if any(map(file.is_relative_to, places)) else None


def _signature(record: Mapping[str, Any], key: bytes) -> str:
    text = json.dumps({name: record.get(name) for name in SIGNED}, sort_keys=True)
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def _key_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "jaxdist", "key")


def _key() -> bytes | None:
    """This user's key; None: there is none, or others can read or have written it."""
    try:
        handle = os.open(_key_file(), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        own = about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077
        key = file.read(KEY_BYTES + 1) if own and stat.S_ISREG(about.st_mode) else b""
    return key if len(key) == KEY_BYTES else None


def _made() -> bytes | None:
    """Makes the key, whole or not at all; None: there is no place for it, or one that is not to be used."""
    file = _key_file()
    unfinished = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as made:
            made.write(secrets.token_bytes(KEY_BYTES))
        # Of two who make it at the same time one is first.
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, file)
        unfinished.unlink()
    except OSError:
        return None
    return _key()

"""Distributed optimisation for JAX: how many workers, each with its own data, agree on one model."""

import re
import sys
from importlib import metadata

import lazy_loader

__version__ = "0.1.0"
# As in pyproject.toml: pip asks once, this asks each time. No JAX is imported for it.
PYTHON, JAX = (3, 11), ((0, 10, 2), (0, 11))


def _check(python: tuple[int, ...], jax: str) -> None:
    """Refuses a Python or a JAX that jaxdist was not made for.

    >>> _check((3, 11), "0.10.2"), _check((3, 14), "0.10.3.dev1")
    (None, None)
    >>> _check((3, 11), "0.11.0")
    Traceback (most recent call last):
    ImportError: this is JAX 0.11.0, and jaxdist ... needs 0.10.2 <= jax < 0.11; write pip install ...
    """
    if python < PYTHON:
        raise ImportError(f"this is Python {_dotted(python)}, and jaxdist needs {_dotted(PYTHON)}")
    least, below = map(_dotted, JAX)
    if not JAX[0] <= tuple(map(int, re.findall(r"\d+", jax)[:3])) < JAX[1]:
        raise ImportError(
            f"this is JAX {jax or 'missing'}, and jaxdist {__version__} needs {least} <= jax < {below}; "
            f"write pip install 'jax>={least},<{below}'"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


_check(sys.version_info[:2], _installed("jax"))

# Public names are listed in `__init__.pyi` and imported when first used: JAX takes seconds to import, and
# `jaxdist --help` or a mistyped command need none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Distributed optimisation for JAX: how many workers, each with its own data, agree on one model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdist.public import *

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # JAX takes seconds to import; `jaxdist --help` and a mistyped command need none of it.
    if not name.startswith("_") and name != "public":
        import jaxdist.public as public

        if hasattr(public, name):
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    import jaxdist.public as public

    return sorted(name for name in vars(public) if not name.startswith("_"))

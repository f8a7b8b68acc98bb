"""Distributed optimisation for JAX: how many workers, each with its own data, agree on one model."""

import lazy_loader

__version__ = "0.1.0"

# Public names are listed in `__init__.pyi` and imported when first used: JAX takes seconds to import, and
# `jaxdist --help` or a mistyped command need none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

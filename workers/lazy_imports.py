"""Importing parts of a package without running its `__init__`.

What a swap costs is mostly starting Python. Two packages load far more than a worker uses:
`llama_cpp` its high-level API with numpy, jinja2 and diskcache (80 of 100 ms), `aiohttp` its
client with a TLS context (45 of 140 ms). Both are made of modules that stand on their own.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def skip_package_init(name: str, **attributes: str) -> None:
    """Puts package `name` in place without running its `__init__`, so that modules of it can be
    imported singly. `attributes` are names that these modules ask of the package.

    Whoever asks the package for anything else gets it: the `__init__` runs then. Does nothing
    when the package is imported already; raises ModuleNotFoundError when it is not installed.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package named {name!r}", name=name)
    package = _LazyPackage(spec)
    vars(package).update(attributes)
    sys.modules[name] = package


class _LazyPackage(ModuleType):
    """A package whose `__init__` has not run yet."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec
        self.__loader__ = spec.loader
        self.__path__ = list(spec.submodule_search_locations or ())
        self.__file__ = spec.origin

    def __getattr__(self, name: str) -> object:
        """Called for what is not there: runs the `__init__`, unless a module was meant."""
        spec = self.__spec__
        missing = AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        special = name.startswith("__") and name not in {"__all__", "__version__"}
        if special or spec is None or spec.loader is None:
            raise missing
        if importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            raise missing  # the import system asks first, and then imports the module
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)

"""Imports of single modules of a package without its `__init__`.

Most of the cost of a swap is the start of Python. Two packages load far more than a worker uses:
`llama_cpp` its high-level API with numpy, jinja2 and diskcache (80 of 100 ms), `aiohttp` its
client with a TLS context (45 of 140 ms). Both are made of modules that stand on their own.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def skip_package_init(name: str, **attributes: str) -> None:
    """Register package `name` without running its `__init__`, so that its modules can be
    imported singly.

    `attributes` are attributes of the package that these modules read. Access to any other runs
    the `__init__`. Does nothing when the package is imported already; raises ModuleNotFoundError
    when it is not installed.
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
        """Run the `__init__` for a missing attribute, unless it is the name of a module."""
        spec = self.__spec__
        missing = AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        special = name.startswith("__") and name not in {"__all__", "__version__"}
        if special or spec is None or spec.loader is None:
            raise missing
        if importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            raise missing  # the import system imports the module then
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)

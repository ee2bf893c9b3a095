"""Importing parts of a package without running its `__init__`.

What a swap costs is mostly starting Python. Two packages load far more than a worker uses:
`llama_cpp` its high-level API with numpy, jinja2 and diskcache (80 of 100 ms), `aiohttp` its
client with a TLS context (45 of 140 ms). Both are made of modules that stand on their own.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def skip_package_init(name: str, **attributes: str) -> None:
    """Puts an empty package `name` in place, so that its modules can be imported singly.

    `attributes` are names the package's own modules ask of it. Does nothing when the package
    is imported already; raises ModuleNotFoundError when it is not installed.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package named {name!r}", name=name)
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    package.__file__ = spec.origin
    vars(package).update(attributes)
    sys.modules[name] = package

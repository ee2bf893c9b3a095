"""A package registered without its `__init__` is still the whole package to other code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.lazy_imports import skip_package_init


def run(code: str) -> str:
    """Return the output of `code` in a separate interpreter."""
    command = [sys.executable, "-c", f"from workers.lazy_imports import skip_package_init\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_module_is_imported_without_the_rest() -> None:
    code = (
        "import sys\nskip_package_init('llama_cpp')\nfrom llama_cpp import llama_cpp\n"
        "print(llama_cpp.llama_max_devices() > 0, 'numpy' in sys.modules, 'jinja2' in sys.modules)"
    )
    assert run(code) == "True False False"


def test_another_attribute_imports_the_whole_package() -> None:
    code = (
        "skip_package_init('aiohttp', __version__='')\nfrom aiohttp import web\nimport sys\n"
        "print('aiohttp.client' in sys.modules)\n"
        "from aiohttp import ClientSession\nimport aiohttp\n"
        "print(aiohttp.ClientSession is ClientSession, aiohttp.web is web, aiohttp.__version__[0])"
    )
    assert run(code).split() == ["False", "True", "True", "3"]


def test_a_missing_package_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        skip_package_init("no_such_package")

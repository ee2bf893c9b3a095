"""Short helpers that parse configuration text for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from swapd.config.errors import ConfigError
from swapd.config.load import LoadedConfig, parse
from swapd.domain.models import ModelSpec

WORKER = ("python", "-m", "worker")
RAM = 16 * 2**30


def read(text: str, env: Mapping[str, str] = MappingProxyType({})) -> LoadedConfig:
    return parse(text, "config.yaml", env, worker_command=WORKER, total_memory=RAM)


def model(text: str, env: Mapping[str, str] = MappingProxyType({})) -> ModelSpec:
    """Return the only model of a configuration, which must not give warnings."""
    loaded = read(text, env)
    assert loaded.warnings == ()
    [spec] = loaded.catalog.models.values()
    return spec


def faults(text: str, env: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return the error messages for a text, one per line of the error."""
    with pytest.raises(ConfigError) as caught:
        read(text, env)
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    return str(caught.value).splitlines()

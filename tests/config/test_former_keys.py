"""Former names of keys: accepted for one release, with a warning that names the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapd.config.custom_models import parse_custom_models
from swapd.config.errors import ConfigError
from swapd.config.load import LoadedConfig
from swapd.config.yaml_dump import parse_setting
from tests.config.reading import faults, read
from tests.library.stores import Machine

MODEL = "models:\n  m:\n    cmd: serve ${PORT}\n"
KEYS = [
    ("memory:\n  {key}: 3\n" + MODEL, "memory.", "stall", "psi_threshold"),
    ("drain_grace: 3\n" + MODEL, "", "drain_grace", "drain_timeout"),
    ("max_waiting: 3\n" + MODEL, "", "max_waiting", "max_queued"),
    ("max_wait: 3\n" + MODEL, "", "max_wait", "max_turn"),
    ("spare: false\n" + MODEL, "", "spare", "warm_standby"),
    (MODEL + "    min_stay: 3\n", "models.m.", "min_stay", "min_residency"),
]
RENAMED = "was renamed to {}; the old name is accepted in this release only"


def renamed_values(loaded: LoadedConfig) -> list[object]:
    """Return the value of each renamed key, in the order of `KEYS`."""
    limits, settings = loaded.catalog.limits, loaded.settings
    return [
        limits.psi_threshold_percent,
        settings.drain_timeout,
        limits.max_queued,
        limits.max_turn,
        settings.warm_standby,
        loaded.catalog.models["m"].serving.min_residency,
    ]


@pytest.mark.parametrize(("text", "section", "old", "new"), KEYS, ids=[key[2] for key in KEYS])
def test_a_former_key_works_and_warns_once(text: str, section: str, old: str, new: str) -> None:
    text = text.replace("{key}", old)
    loaded = read(text)
    assert renamed_values(loaded) == renamed_values(read(text.replace(f"{old}:", f"{new}:")))
    assert renamed_values(loaded) != renamed_values(read(MODEL))
    [warning] = loaded.warnings
    assert warning.key == section + old
    assert warning.message == RENAMED.format(new)


@pytest.mark.parametrize(("text", "section", "old", "new"), KEYS, ids=[key[2] for key in KEYS])
def test_both_names_of_a_key_are_an_error(text: str, section: str, old: str, new: str) -> None:
    lines = text.replace("{key}", old).splitlines()
    at = next(i for i, line in enumerate(lines) if f"{old}:" in line)
    lines.insert(at + 1, lines[at].replace(old, new))
    [sentence] = faults("\n".join(lines))
    assert sentence.endswith(f": {section}{old}: means the same as {new}; give one of them")


def test_a_former_key_in_custom_models_warns_once_at_its_line() -> None:
    custom = parse_custom_models("spare: true\nmodels:\n  m:\n    min_stay: 3\n", {})
    assert custom.models["m"].min_residency == 3
    assert sorted(str(warning) for warning in custom.warnings) == [
        f"custom_models.yaml:1: spare: {RENAMED.format('warm_standby')}",
        f"custom_models.yaml:4: models.m.min_stay: {RENAMED.format('min_residency')}",
    ]
    with pytest.raises(ConfigError, match="means the same as min_residency; give one of them"):
        parse_custom_models("models: {m: {min_stay: 3, min_residency: 3}}", {})


def test_the_generated_file_has_current_names(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.put("models/m/m-7b.gguf", machine.alice)
    (machine.home / "custom_models.yaml").write_text(
        "max_waiting: 7\nmemory: {stall: 20}\nmodels:\n  m:7b: {min_stay: 3}\n"
    )
    assert len(machine.sync().warnings) == 3
    written = (machine.home / "config.yaml").read_text(encoding="utf-8")
    for old in ("max_waiting", "stall", "min_stay"):
        assert old not in written
    loaded = machine.load()
    assert loaded.warnings == ()
    assert loaded.catalog.limits.max_queued == 7
    assert loaded.catalog.limits.psi_threshold_percent == 20
    assert loaded.catalog.models["ls/m:7b"].serving.min_residency == 3


def test_a_former_key_has_the_type_of_its_new_name() -> None:
    assert parse_setting("min_stay", "3") == 3

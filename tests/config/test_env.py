"""Settings from `.env` and from the environment of the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapd.config.env import find_stores, folders_to_watch, read_env, sync_settings
from swapd.config.errors import ConfigError


def test_dotenv_is_read_and_the_environment_has_precedence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# a comment\nMODEL_TTL=60 # a minute\nexport MODEL_PREFIX=''\nMODELS_DIR=\"/a # b\"\n"
        "BARE\nSWAPD_PORT=1\n"
    )
    env = read_env(tmp_path, {"SWAPD_PORT": "2", "HOME": "/h"})
    assert env == {
        "MODEL_TTL": "60", "MODEL_PREFIX": "", "MODELS_DIR": "/a # b", "SWAPD_PORT": "2",
        "HOME": "/h",
    }  # fmt: skip


def test_a_missing_dotenv_is_allowed(tmp_path: Path) -> None:
    assert read_env(tmp_path, {"A": "b"}) == {"A": "b"}


def test_an_invalid_line_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\nB='2\n")
    with pytest.raises(ConfigError, match=r"^\.env:2: must be NAME=value$"):
        read_env(tmp_path, {})
    (tmp_path / ".env").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"^\.env: is not text in UTF-8$"):
        read_env(tmp_path, {})


def test_the_defaults_are_those_of_the_reference() -> None:
    settings = sync_settings({"HOME": "/h"})
    assert (settings.model_ttl, settings.threshold, settings.interval) == (1800, 75, 30)
    assert (settings.prefix, settings.ctx_size) == ("ls/", 8192)
    assert (settings.parallel, settings.min_age, settings.sync_interval) == (1, 5, 3600)


def test_variables_override_the_defaults() -> None:
    settings = sync_settings(
        {"MODEL_TTL": "0", "MODEL_PREFIX": "", "MODELS_DIR": "~/m", "HOME": "/h",
         "DEFAULT_PARALLEL": "4", "MIN_MODEL_AGE_SECONDS": "0.5", "PRESSURE_CHECK_INTERVAL": ""}
    )  # fmt: skip
    assert (settings.model_ttl, settings.prefix) == (0, "")
    assert (settings.parallel, settings.min_age, settings.interval) == (4, 0.5, 30)


def test_all_invalid_variables_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        sync_settings(
            {"MODEL_TTL": "soon", "MEMORY_PRESSURE_THRESHOLD": "101", "DEFAULT_CTX_SIZE": "0",
             "DEFAULT_PARALLEL": "1.5", "MIN_MODEL_AGE_SECONDS": "inf"}
        )  # fmt: skip
    assert str(caught.value).splitlines() == [
        "environment: MODEL_TTL: must be a number, 0 or more, not soon",
        "environment: MEMORY_PRESSURE_THRESHOLD: must be a number, 0 to 100, not 101",
        "environment: DEFAULT_CTX_SIZE: must be a number, 1 or more, not 0",
        "environment: DEFAULT_PARALLEL: must be a whole number, not 1.5",
        "environment: MIN_MODEL_AGE_SECONDS: must be a number, 0 or more, not inf",
    ]


def test_stores_are_in_the_default_folders_of_their_programs() -> None:
    stores = find_stores({"HOME": "/h"})
    assert stores.ollama == (Path("/h/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))
    assert stores.models_dir == Path("/h/.cache/lm-studio/models")
    assert stores.lmstudio == (stores.models_dir, Path("/h/.lmstudio/models"))
    assert stores.hub == (Path("/h/.cache/huggingface/hub"),)
    assert (stores.folders, stores.problems) == ((), ())


@pytest.mark.parametrize(
    ("env", "hub"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "~/b", "HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/h/b/hub"),
        ({"XDG_CACHE_HOME": "/c", "HF_HOME": " "}, "/c/huggingface/hub"),
    ],
)
def test_the_hub_variables_have_the_precedence_of_huggingface_hub(
    env: dict[str, str], hub: str
) -> None:
    assert find_stores(env).hub == (Path(hub),)


def test_configured_folders_count_and_missing_ones_are_reported(tmp_path: Path) -> None:
    env = {
        "HOME": str(tmp_path), "MODELS_DIR": "~/m", "OLLAMA_MODELS": "/no/o",
        "MODEL_FOLDERS": f"{tmp_path}: ~/x :",
    }  # fmt: skip
    stores = find_stores(env)
    assert stores.lmstudio == (stores.models_dir,) == (tmp_path / "m",)
    assert stores.ollama == (Path("/no/o"),)
    assert stores.folders == (tmp_path, tmp_path / "x")
    assert [str(problem) for problem in stores.problems] == [
        f"environment: MODELS_DIR: {tmp_path}/m is not a folder",
        "environment: OLLAMA_MODELS: /no/o is not a folder",
        f"environment: MODEL_FOLDERS: {tmp_path}/x is not a folder",
    ]


def test_only_existing_folders_are_watched(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "MODELS_DIR": "~/m", "MODEL_FOLDERS": "~/m:~/f"}
    assert folders_to_watch(find_stores(env)) == []
    for name in ("m", "f", ".ollama/models/manifests", ".ollama/models/blobs"):
        (tmp_path / name).mkdir(parents=True)
    assert folders_to_watch(find_stores(env)) == [
        tmp_path / ".ollama/models/manifests", tmp_path / "m", tmp_path / "f",
    ]  # fmt: skip

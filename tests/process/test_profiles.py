"""Model profiles in their file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from swapd.domain.models import Catalog, Limits, ModelProfile, ModelSpec
from swapd.process import profiles
from swapd.process.profiles import ProfileStore
from tests.specs import changed_spec, model_spec

LOG = logging.getLogger("profiles")


class Store:
    """A model file, and a file for its profile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "learned.json"
        self.model = folder / "m.gguf"
        self.model.write_bytes(b"1")
        self.spec = model_spec("m", ("worker", "--model", "m.gguf", "--ctx-size", "512"))

    def open(self) -> ProfileStore:
        return ProfileStore(self.file, self.folder, LOG)

    def load(self, spec: ModelSpec | None = None) -> ModelProfile | None:
        catalog = Catalog({"m": spec or self.spec}, Limits())
        return self.open().load(catalog).get("m")

    async def save(self, profile: ModelProfile) -> None:
        opened = self.open()
        opened.save(opened.identity(self.spec), profile)
        opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def test_a_saved_profile_is_loaded_by_the_next_store(store: Store) -> None:
    assert store.load() is None
    await store.save(ModelProfile(5, 1.5))
    assert store.load() == ModelProfile(5, 1.5)
    await store.save(ModelProfile(7, 1.25))
    assert store.load() == ModelProfile(7, 1.25)
    assert sorted(p.name for p in store.folder.iterdir()) == ["learned.json", "m.gguf"]


async def test_a_profile_belongs_to_the_command_and_its_files(store: Store) -> None:
    await store.save(ModelProfile(5, 1.5))
    wider = changed_spec(store.spec, argv=(*store.spec.launch.argv[:-1], "1024"))
    assert store.load(wider) is None
    assert store.load(changed_spec(store.spec, env=(("A", "b"),))) is None
    assert store.load(changed_spec(store.spec, ttl=5, need_bytes=9)) == ModelProfile(5, 1.5)
    store.model.write_bytes(b"22")
    assert store.load() is None
    store.model.write_bytes(b"1")
    os.utime(store.model, ns=(1, 1))
    assert store.load() is None


async def test_files_in_a_folder_of_the_command_do_not_change_the_identity(
    store: Store,
) -> None:
    store.spec = changed_spec(
        store.spec, argv=(*store.spec.launch.argv, "--slot-save-path", "./kv")
    )
    (store.folder / "kv").mkdir()
    await store.save(ModelProfile(5, 1.5))
    os.utime(store.folder / "kv", ns=(1, 1))
    assert store.load() == ModelProfile(5, 1.5)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"version": 2, "models": {}}', b'{"version": 1}']
)
def test_a_damaged_file_is_quarantined(
    store: Store, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.file.write_bytes(content)
    assert store.load() is None
    assert not store.file.exists()
    assert (store.folder / "learned.json.damaged").read_bytes() == content
    assert "learned.json is damaged" in caplog.text


async def test_a_failed_write_is_logged_and_the_profile_stays_in_memory(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    opened = ProfileStore(store.folder / "nowhere/learned.json", store.folder, LOG)
    opened.save(opened.identity(store.spec), ModelProfile(5))
    opened.close()
    assert "can't be written: No such file or directory" in caplog.text
    assert opened.load(Catalog({"m": store.spec})) == {"m": ModelProfile(5)}


async def test_the_least_recently_saved_profiles_are_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MAX_PROFILES", 2)
    opened = store.open()
    for identity in ("a", "b", "a", "c"):
        opened.save(identity, ModelProfile(1))
    opened.close()
    assert list(store.open()._profiles) == ["a", "c"]

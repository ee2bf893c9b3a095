"""What was learned of models, in its file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from swapd.domain.models import Catalog, Limits, ModelProfile, ModelSpec
from swapd.process import profiles as room
from swapd.process.profiles import ProfileStore
from tests.specs import changed_spec, model_spec

LOG = logging.getLogger("learned")


class Kept:
    """A model file, and a place to keep what is learned of its model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "learned.json"
        self.model = folder / "m.gguf"
        self.model.write_bytes(b"1")
        self.spec = model_spec("m", ("worker", "--model", "m.gguf", "--ctx-size", "512"))

    def open(self) -> ProfileStore:
        return ProfileStore(self.file, self.folder, LOG)

    def recall(self, spec: ModelSpec | None = None) -> ModelProfile | None:
        catalog = Catalog({"m": spec or self.spec}, Limits())
        return self.open().recall(catalog).get("m")

    async def note(self, learned: ModelProfile) -> None:
        learnings = self.open()
        learnings.note(learnings.identity(self.spec), learned)
        learnings.close()


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


async def test_what_was_noted_is_known_to_the_next(kept: Kept) -> None:
    assert kept.recall() is None
    await kept.note(ModelProfile(5, 1.5))
    assert kept.recall() == ModelProfile(5, 1.5)
    await kept.note(ModelProfile(7, 1.25))
    assert kept.recall() == ModelProfile(7, 1.25)
    assert sorted(p.name for p in kept.folder.iterdir()) == ["learned.json", "m.gguf"]


async def test_it_belongs_to_the_command_and_its_files(kept: Kept) -> None:
    await kept.note(ModelProfile(5, 1.5))
    wider = changed_spec(kept.spec, argv=(*kept.spec.launch.argv[:-1], "1024"))
    assert kept.recall(wider) is None
    assert kept.recall(changed_spec(kept.spec, env=(("A", "b"),))) is None
    assert kept.recall(changed_spec(kept.spec, ttl=5, need_bytes=9)) == ModelProfile(5, 1.5)
    kept.model.write_bytes(b"22")
    assert kept.recall() is None
    kept.model.write_bytes(b"1")
    os.utime(kept.model, ns=(1, 1))
    assert kept.recall() is None


async def test_what_workers_leave_in_a_folder_of_their_command_makes_no_other_model(
    kept: Kept,
) -> None:
    kept.spec = changed_spec(kept.spec, argv=(*kept.spec.launch.argv, "--slot-save-path", "./kv"))
    (kept.folder / "kv").mkdir()
    await kept.note(ModelProfile(5, 1.5))
    os.utime(kept.folder / "kv", ns=(1, 1))
    assert kept.recall() == ModelProfile(5, 1.5)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"version": 2, "models": {}}', b'{"version": 1}']
)
def test_a_damaged_file_is_set_aside(
    kept: Kept, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept.file.write_bytes(content)
    assert kept.recall() is None
    assert not kept.file.exists()
    assert (kept.folder / "learned.json.damaged").read_bytes() == content
    assert "learned.json is damaged" in caplog.text


async def test_what_cannot_be_written_is_told_and_known_all_the_same(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    learnings = ProfileStore(kept.folder / "nowhere/learned.json", kept.folder, LOG)
    learnings.note(learnings.identity(kept.spec), ModelProfile(5))
    learnings.close()
    assert "can't be written: No such file or directory" in caplog.text
    assert learnings.recall(Catalog({"m": kept.spec})) == {"m": ModelProfile(5)}


async def test_the_longest_unheard_of_are_forgotten(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST", 2)
    learnings = kept.open()
    for identity in ("a", "b", "a", "c"):
        learnings.note(identity, ModelProfile(1))
    learnings.close()
    assert list(kept.open()._known) == ["a", "c"]

"""The bridge to LM Studio: links to Ollama's blobs, and whose they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from swapd.library.sources.base import SkippedFile
from tests.library.stores import Machine, another

LIBRARY = "registry.ollama.ai/library"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.ollama.add(f"{LIBRARY}/gemma3/27b", machine.bard, "27.4B")
    return machine


@pytest.fixture
def link(machine: Machine) -> Path:
    return machine.models / "ollama/gemma3/gemma3-27.4B-Q8_0.gguf"


def test_a_link_leads_to_the_blob_and_is_removed_with_its_model(
    machine: Machine, link: Path
) -> None:
    assert machine.sync().linked == (link,)
    assert link.readlink() == machine.ollama.path(machine.bard)
    assert list(machine.served()) == ["ls/gemma3:27.4b-q8_0"]
    (machine.ollama.root / f"manifests/{LIBRARY}/gemma3/27b").unlink()
    machine.ollama.path(machine.bard).unlink()
    report = machine.sync()
    assert (report.unlinked, report.broken, report.warnings) == ((link,), (), ())
    assert list(machine.models.iterdir()) == []


def test_a_new_blob_under_the_old_tag_takes_the_link_over(machine: Machine, link: Path) -> None:
    machine.sync()
    machine.ollama.add(f"{LIBRARY}/gemma3/27b", another(machine.bard, 1), "27.4B")
    assert machine.sync().linked == (link,)
    assert link.readlink() == machine.ollama.path(another(machine.bard, 1))
    assert [path.name for path in link.parent.iterdir()] == [link.name]


def test_no_link_of_anybody_else_s_is_replaced_or_removed(machine: Machine, link: Path) -> None:
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere/else.gguf")
    report = machine.sync()
    assert (report.linked, report.unlinked) == ((), ())
    reason = "is a link to /nowhere/else.gguf, which is missing"
    assert report.broken == (SkippedFile(link, reason, "lm studio"),)
    (machine.ollama.root / f"manifests/{LIBRARY}/gemma3/27b").unlink()
    assert machine.sync().unlinked == ()
    assert link.is_symlink()


def test_a_changed_link_is_left_alone(machine: Machine, link: Path) -> None:
    machine.sync()
    link.unlink()
    link.symlink_to("/nowhere/else.gguf")
    (machine.ollama.root / f"manifests/{LIBRARY}/gemma3/27b").unlink()
    assert machine.sync().unlinked == ()
    assert link.is_symlink()


def test_where_another_program_has_linked_it_there_is_no_second(
    machine: Machine, link: Path
) -> None:
    other = link.with_name("Gemma3-from-elsewhere.gguf")
    other.parent.mkdir(parents=True)
    other.symlink_to(machine.ollama.path(machine.bard))
    assert machine.sync().linked == ()
    assert list(machine.served()) == ["ls/gemma3:27.4b-q8_0"]
    other.unlink()
    assert machine.sync().linked == (link,)


@pytest.mark.parametrize("away", ["ollama", "ollama/blobs", "ollama/manifests"])
def test_a_store_that_is_not_mounted_costs_no_link(machine: Machine, link: Path, away: str) -> None:
    machine.sync()
    (machine.root / away).rename(machine.root / "unmounted")
    report = machine.sync()
    assert (report.unlinked, link.is_symlink()) == ((), True)
    (machine.root / "unmounted").rename(machine.root / away)
    assert machine.sync().linked == ()
    (machine.ollama.root / f"manifests/{LIBRARY}/gemma3/27b").unlink()
    assert machine.sync().unlinked == (link,)


def test_a_models_dir_that_is_not_mounted_is_not_made_and_not_forgotten(
    machine: Machine, link: Path
) -> None:
    machine.sync()
    machine.models.rename(machine.root / "unmounted")
    report = machine.sync()
    assert (report.linked, report.unlinked, machine.models.exists()) == ((), (), False)
    (machine.root / "unmounted").rename(machine.models)
    (machine.ollama.root / f"manifests/{LIBRARY}/gemma3/27b").unlink()
    assert machine.sync().unlinked == (link,)


def test_a_record_written_before_a_crash_does_no_harm(machine: Machine, link: Path) -> None:
    machine.sync()
    stored = machine.home / ".swapd/links.json"
    written = json.loads(stored.read_text())
    written["links"][str(machine.models / "ollama/x/x.gguf")] = "/never/made"
    stored.write_text(json.dumps(written))
    link.unlink()
    assert machine.sync().linked == (link,)
    assert list(json.loads(stored.read_text())["links"]) == [str(link)]


@pytest.mark.parametrize("text", ["{", "[]", '{"links": 3}', ""])
def test_with_a_damaged_record_swapd_owns_no_link(machine: Machine, link: Path, text: str) -> None:
    machine.sync()
    (machine.home / ".swapd/links.json").write_text(text)
    (machine.ollama.root / f"manifests/{LIBRARY}/gemma3/27b").unlink()
    assert machine.sync().unlinked == ()
    assert link.is_symlink()


def test_a_folder_that_swapd_did_not_create_stays(machine: Machine, link: Path) -> None:
    link.parent.mkdir(parents=True)
    machine.sync()
    shutil.rmtree(machine.ollama.root / f"manifests/{LIBRARY}/gemma3")
    assert machine.sync().unlinked == (link,)
    assert link.parent.is_dir()


def test_an_unwritable_folder_is_reported(machine: Machine, link: Path) -> None:
    (machine.models / "ollama").write_text("a file, where a folder should be")
    report = machine.sync()
    assert report.linked == ()
    [warning] = report.warnings
    assert str(warning) == f"environment: MODELS_DIR: {link}: Not a directory"
    assert list(machine.served()) == ["ls/gemma3:27.4b-q8_0"]

"""What a source says of the files it holds, before anybody has looked into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is not listed, and why, as the end of a sentence that begins with its path."""

    path: Path
    reason: str
    source: str = ""
    """As in `Candidate`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be a model, and what its names are made of."""

    path: Path
    source: str
    """For people: `demo`, `ollama`, `lm studio`, `hugging face`, `folder`."""
    place: PurePath
    """Folders and stem from which the reference's rule makes a name: the last two count."""
    apart: str = ""
    """A name for when the rule's is taken; empty: one with the folder above in front."""
    also: tuple[str, ...] = ()
    """Names by which whoever put it there knows it, as they write them."""
    linked: bool = False
    """Stands here only as a link, so the same file elsewhere comes first."""
    settled: bool = False
    """Put in place when it was whole, so however young it is, nobody writes to it any more."""
    projector: Path | None = None
    """Known to belong to it; otherwise one in its folder does."""
    adapters: tuple[Path, ...] = ()
    """Files that are always in use with it."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What one source holds."""

    offers: tuple[Candidate, ...] = ()
    broken: tuple[SkippedFile, ...] = ()
    """What should be a model and can't be used."""
    skipped: tuple[SkippedFile, ...] = ()
    """What is well and no model of its own."""


def skip_reason(path: Path, error: OSError) -> str:
    """Why a file or folder can't be read, as the end of a sentence."""
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return f"is a link to {path.readlink()}, which is missing"
    return f"cannot be read: {error.strerror or error}"


def is_gguf(name: str) -> bool:
    """Whether a file is called as GGUF files are."""
    return name.lower().endswith(".gguf")

"""Result of scanning a source: files that may be models, not yet opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is not listed, with the end of a sentence that begins with its path."""

    path: Path
    reason: str
    source: str = ""
    """As in `Candidate`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be a model, with everything its names are derived from."""

    path: Path
    source: str
    """Name of the source for display: `demo`, `ollama`, `lm studio`, `hugging face`, `folder`."""
    place: PurePath
    """Folders and stem that the naming rule uses; only the last two count."""
    fallback_name: str = ""
    """Name used when the rule's is taken; empty: the rule's with the parent folder in front."""
    known_as: tuple[str, ...] = ()
    """Names that the program of the source has for it, in its own spelling."""
    linked: bool = False
    """True if it is only a link here, so that the same file elsewhere comes first."""
    settled: bool = False
    """True if it was moved into place complete, so that its age does not matter."""
    projector: Path | None = None
    """Projector known to belong to it; None: one in its folder is chosen."""
    adapters: tuple[Path, ...] = ()
    """Adapter files that are always loaded with it."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Contents of one source."""

    candidates: tuple[Candidate, ...] = ()
    broken: tuple[SkippedFile, ...] = ()
    """Files that should be models and can't be used."""
    skipped: tuple[SkippedFile, ...] = ()
    """Sound files that are no model on their own."""


def skip_reason(path: Path, error: OSError) -> str:
    """Return why a file or folder can't be read, as the end of a sentence."""
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return f"is a link to {path.readlink()}, which is missing"
    return f"cannot be read: {error.strerror or error}"


def is_gguf(name: str) -> bool:
    """Return True if the file name has the suffix of GGUF files."""
    return name.lower().endswith(".gguf")

"""What a worker is likely to hold, by its command and the beginnings of the files that it names."""

from __future__ import annotations

from pathlib import Path

from swapd.config.facts import facts_of
from swapd.system.state_files import size as file_size
from swapd.config.metadata import DamagedModelError, read_beginning
from swapd.config.need import estimate
from swapd.config.specs import model_file, speaks_llama_flags
from swapd.config.split import parts_of
from swapd.config.terms import Terms, terms_of
from swapd.domain.models import ModelSpec


def estimated(spec: ModelSpec, beside: Path) -> int:
    """What its worker will hold, as far as its file and its command tell; 0 without a file."""
    named = model_file(spec)
    if named is None:
        return 0
    size = _size_of_parts(named, beside)
    if not size or not speaks_llama_flags(spec.argv, spec.own):
        return size
    terms = terms_of(spec.argv, spec.own)
    besides = sum(file_size(beside / other) for other in terms.besides)
    need = _need_of(beside / named, size, terms) + besides
    draft = beside / terms.draft
    return need + (_need_of(draft, file_size(draft), terms) if terms.draft else 0)


def _need_of(path: Path, size: int, terms: Terms) -> int:
    try:
        facts = facts_of(read_beginning(path), size)
    except (OSError, ValueError, DamagedModelError):
        # The worker will say what is wrong with it.
        return size
    return estimate(facts, terms) if facts.keys or facts.state else size


def _size_of_parts(file: str, beside: Path) -> int:
    """Bytes of a model's file, all its parts; 0 when one of them is not there."""
    sizes = [file_size(beside / part) for part in parts_of(file)]
    # A name that is no file here may still mean something to the worker.
    return sum(sizes) if all(sizes) else 0

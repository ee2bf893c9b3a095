"""Whether the adapters that commands name are some: what a request for them would find out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from swapd.config.errors import Problem
from swapd.config.model_builder import speaks_llama_flags
from swapd.domain.models import Catalog
from swapd.gguf.llama_flags import adapters_of
from swapd.gguf.reader import DamagedModelError, read_head


def adapter_problems(catalog: Catalog, config: Path) -> list[Problem]:
    """A sentence for each adapter that can't be used; relative paths are meant from the file's."""
    return [
        Problem(config.name, 0, f"models.{spec.name}", wrong)
        for spec in catalog.models.values()
        if speaks_llama_flags(spec.argv, spec.own)
        for files in adapters_of(spec.argv)
        for wrong in _wrong(files, config.parent)
    ]


def _wrong(files: tuple[str, ...], beside: Path) -> Iterator[str]:
    whole = ",".join(files)
    for file in (whole,) if (beside / whole).is_file() else files:
        path = beside / file
        try:
            kind = read_head(path).text("general.type")
        except FileNotFoundError:
            yield f"the adapter {path} is not there"
        except OSError as error:
            yield f"the adapter {path} can't be read: {error.strerror}"
        except DamagedModelError as error:
            yield f"the adapter {path} {error}"
        else:
            if kind != "adapter":
                yield f"{path} is no adapter but a GGUF {f'of type {kind}' if kind else 'file'}"

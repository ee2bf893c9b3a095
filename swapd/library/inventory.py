"""Everything there is to list: what `./model list` and `./model show` tell of each model.

The models are those that a sync would write now, so what was just put into a folder is listed
before it is served. Nothing is written but the cache of heads; with that warm, 500 models take less
than a fifth of a second.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from swapd.config.units import parse_size
from swapd.domain.models import Catalog, ModelSpec
from swapd.gguf.llama_flags import model_file
from swapd.gguf.model_info import ModelInfo, ModelInfoCache
from swapd.gguf.reader import DamagedModelError, split_parts
from swapd.library.model_entries import ModelEntry
from swapd.library.naming import bare_name
from swapd.library.sources.base import SkippedFile, skip_reason
from swapd.library.sync import apply_plan, make_plan, names_in

CUSTOM = "custom_models.yaml"
"""The source of a model that no store holds."""
WRITTEN = "config.yaml"
"""The source of a model in a configuration that somebody wrote by hand."""
CARDS = "written-cards.json"
"""In the home's state: the heads of the files that such a configuration names."""


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """One model, or one file that should be a model and can't be used.

    0 and empty text: not known. Sizes are bytes, contexts and vocabularies tokens.
    """

    name: str
    """As clients ask for it; of a file that can't be used, as it would be if it could."""
    aliases: tuple[str, ...] = ()
    broken: str = ""
    """Why it can't be used, as the end of a sentence that begins with its path."""
    source: str = ""
    """`demo`, `ollama`, `lm studio`, `hugging face`, `folder` or `custom_models.yaml`."""
    path: Path | None = None
    """The file, of several the first; None for a server that needs none or brings its own."""
    elsewhere: tuple[Path, ...] = ()
    """Where else the same file was found."""
    known_as: tuple[str, ...] = ()
    """What the program that it comes from calls it: Ollama's tags, the hub's OWNER/REPO:QUANT."""
    size: int = 0
    """Of all its files."""
    need: int = 0
    """Memory that is reserved for it before it has run."""
    context: int = 0
    """What it runs with."""
    trained_context: int = 0
    """What it was trained for."""
    architecture: str = ""
    parameters: int = 0
    quantisation: str = ""
    vocabulary: int = 0
    template: bool = False
    """Whether it brings a chat template."""
    pooling: str = ""
    """Of an embedding model: none, mean, cls, last or rank."""
    title: str = ""
    """What its maker calls it."""
    projector: Path | None = None
    adapters: tuple[str, ...] = ()
    """Names of the adapters that it can be asked for with."""
    command: str = ""
    """The command of its entry in config.yaml."""
    base: str = ""
    """The model whose file it is another use of, without prefix."""
    served: bool = True
    """Whether it stands in the configuration; a model that was just found does after a sync."""


def list_inventory(
    home: Path,
    environ: Mapping[str, str],
    demo_dir: Path,
    *,
    now: float,
    total_memory: int,
) -> list[InventoryEntry]:
    """All models by name, then all files that can't be used by path.

    The arguments are those of `sync`. Raises ConfigError for a custom_models.yaml or environment
    that can't be used.
    """
    plan = make_plan(home, environ, demo_dir, now=now, total_memory=total_memory)
    listed = [_entry(made) for made in plan.assembled.models]
    prefix = plan.settings.prefix
    return listed + [_broken(passed, prefix) for passed in plan.discovery.broken]


def mark_served(entries: list[InventoryEntry], config: Path) -> list[InventoryEntry]:
    """The models, those marked that a configuration, written by a sync, does not have."""
    names = names_in(config)
    return [replace(e, served=e.name in names and not e.broken) for e in entries]


def written(catalog: Catalog, beside: Path, state: Path) -> list[InventoryEntry]:
    """The models of a configuration that somebody wrote, by name, as far as it and the files tell.

    Relative paths are meant from the folder `beside`; heads that were read are kept in `state`.
    """
    cards = ModelInfoCache(state / CARDS)
    listed = [_written(spec, beside, cards) for _, spec in sorted(catalog.models.items())]
    apply_plan(cards)
    return listed


def _written(spec: ModelSpec, beside: Path, cards: ModelInfoCache) -> InventoryEntry:
    named = model_file(spec)
    entry = InventoryEntry(
        spec.name,
        aliases=spec.presentation.aliases,
        source=WRITTEN,
        path=beside / named if named else None,
        need=spec.serving.need_bytes,
        context=spec.launch.context,
        title=spec.presentation.title,
        command=shlex.join(spec.launch.argv),
    )
    if entry.path is None:
        return entry
    try:
        files = [(Path(part), Path(part).stat()) for part in split_parts(str(entry.path))]
        read = [cards.card(path, status) for path, status in files]
    except (DamagedModelError, OSError) as error:
        if not spec.launch.builtin:
            # Another server may mean something else by it, such as a name of the hub's.
            return replace(entry, path=None)
        why = skip_reason(entry.path, error) if isinstance(error, OSError) else str(error)
        return replace(entry, broken=why)
    card = replace(read[0], parameters=sum(part.parameters for part in read))
    told = replace(_with_card(entry, card), size=sum(status.st_size for _, status in files))
    return replace(told, title=spec.presentation.title or card.title)


def _entry(made: ModelEntry) -> InventoryEntry:
    entry = made.entry
    command = entry["cmd"] if isinstance(entry["cmd"], str) else " ".join(entry["cmd"])
    metadata = entry.get("metadata", {})
    projector = metadata.get("mmproj")
    listed = InventoryEntry(
        made.name,
        source=CUSTOM,
        aliases=tuple(entry.get("aliases", ())),
        need=parse_size(entry["need"]) if isinstance(entry.get("need"), str) else 0,
        context=made.context,
        projector=Path(projector) if isinstance(projector, str) else None,
        adapters=tuple(metadata.get("adapters", ())),
        command=command,
    )
    if made.found is None:
        return listed
    found, card = made.found, made.found.card
    return replace(
        _with_card(listed, card),
        source=found.source,
        path=found.path,
        elsewhere=found.elsewhere,
        known_as=found.known_as,
        size=found.facts.size,
        base="" if made.bare == found.bare else found.bare,
    )


def _with_card(entry: InventoryEntry, card: ModelInfo) -> InventoryEntry:
    """What the file says of itself."""
    return replace(
        entry,
        trained_context=card.context,
        architecture=card.architecture,
        parameters=card.parameters,
        quantisation=card.quantisation,
        vocabulary=card.vocabulary,
        template=card.template,
        pooling=card.pooling,
        title=card.title,
    )


def _broken(passed: SkippedFile, prefix: str) -> InventoryEntry:
    name = prefix + bare_name(passed.path.parent.name, passed.path.stem)
    try:
        size = passed.path.stat().st_size
    except OSError:
        # Not to be reached, as the reason says.
        size = 0
    return InventoryEntry(
        name, broken=passed.reason, source=passed.source, path=passed.path, size=size
    )

"""Which models there are: what all sources offer, looked into, told apart and named.

Files that are no model of their own (projectors, adapters, later parts) and files that cannot be
used are told with the reason; none of them stops the rest.

Which projector of several belongs to a model, by their names. Pure.

A projector turns images or sound into a model's tokens, and comes as a file of its own.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TypeVar

from swapd.config.env import ModelStores
from swapd.gguf.memory_estimate import MemoryFactors
from swapd.gguf.model_info import ModelInfo, ModelInfoCache
from swapd.gguf.reader import DamagedModelError, split_part, split_parts
from swapd.library.naming import NamedModel, clean, distinct_names
from swapd.library.sources import folders, huggingface, ollama
from swapd.library.sources.base import Candidate, ScanResult, SkippedFile, skip_reason

_PREFERRED = ("F16", "BF16", "Q8_0", "F32")
"""The best of several projectors that differ in precision alone is the first of these."""
_T = TypeVar("_T")


def is_projector_name(stem: str) -> bool:
    """Whether a file is called as projectors are."""
    return "mmproj" in stem.lower()


def owner_of(stem: str) -> str:
    """The model's name within a projector's, if there is one: `eye` in `mmproj-eye-f16`."""
    stem = re.sub(r"mmproj|model", "", stem.lower())
    return re.sub(r"[-_.](?:b?f16|f32|q8_0)$", "", stem).strip("-_.")


def rank(quantisation: str) -> int:
    """The better one has the lower rank."""
    kind = quantisation.upper()
    return _PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED)


def suiting(model: str, projectors: Iterable[tuple[str, _T]], others: Iterable[str]) -> list[_T]:
    """Of projectors with the names in theirs, those that may belong to the model of this stem.

    One that bears the beginning of a model's name is only for models that begin so; `others` are
    the stems of all models beside.
    """
    stems = [stem.lower() for stem in others]
    pairs = list(projectors)
    named = [one for owner, one in pairs if owner and model.lower().startswith(owner)]
    common = [one for owner, one in pairs if owner and not any(s.startswith(owner) for s in stems)]
    common += [one for owner, one in pairs if not owner]
    return named or common


DEMO = "demo"


@dataclass(frozen=True, slots=True)
class DiscoveredModel:
    """A model and the file (of several, the first) that holds it."""

    bare: str
    """Its name without prefix."""
    path: Path
    facts: MemoryFactors
    demo: bool = False
    """Shipped with the project: has no prefix."""
    source: str = ""
    """Where it comes from, for people."""
    card: ModelInfo = field(default_factory=ModelInfo)
    aliases: tuple[str, ...] = ()
    """Names, without prefix, by which its sources know it; each is this model's alone."""
    known_as: tuple[str, ...] = ()
    """What its sources' own programs call it, whoever else they call so."""
    projector: Path | None = None
    adapters: tuple[Path, ...] = ()
    """Files that are always in use with it."""
    elsewhere: tuple[Path, ...] = ()
    """Where else the same file, or a link to it, was found."""
    place: PurePath = field(default_factory=PurePath)
    """Folders and name as its source has them."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a look at the folders found."""

    found: tuple[DiscoveredModel, ...]
    broken: tuple[SkippedFile, ...]
    """Files that should be models and cannot be used."""
    skipped: tuple[SkippedFile, ...]
    """Files that are well and are no models of their own, or not yet."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The name of each file found, by its path: to be handed in at the next look."""
    settles_in: float = 0.0
    """Seconds until every file that is too young now is old enough, if nobody writes to it."""


def discover(
    stores: ModelStores,
    demo_dir: Path,
    *,
    now: float,
    min_age: float,
    cards: ModelInfoCache | None = None,
    names: Mapping[str, str] | None = None,
    bridge: Container[Path] = (),
) -> Discovery:
    """Look through all folders; one that does not exist holds nothing.

    `now` is the time of day that files' ages are counted to, in seconds since the epoch. `cards`
    are the heads read before, and `names` what `Discovery.names` was. Files in `bridge` are links
    of swapd's own and so no source of anything.
    """
    looks = [
        *(ollama.scan(store) for store in stores.ollama),
        *(folders.scan(folder, "lm studio") for folder in stores.lmstudio),
        *(huggingface.scan(cache) for cache in stores.hub),
        *(folders.scan(folder, "folder") for folder in stores.folders),
    ]
    look = _Look(now, min_age, cards or ModelInfoCache(), bridge)
    shipped = folders.scan_folder(demo_dir, DEMO)
    look.over(shipped)
    for looked in looks:
        look.over(looked)
    look.join_projectors()
    found, kept = _named(look.models, names or {})
    return Discovery(
        found=tuple(sorted(found, key=lambda model: (not model.demo, model.bare))),
        broken=_sorted(look.broken),
        skipped=_sorted(look.skipped),
        names=kept,
        settles_in=look.settles_in,
    )


def _sorted(passed: Iterable[SkippedFile]) -> tuple[SkippedFile, ...]:
    return tuple(sorted(dict.fromkeys(passed), key=lambda one: (one.path, one.reason)))


@dataclass
class _Model:
    """A file with all offers of it; the first one names it."""

    offers: list[Candidate]
    facts: MemoryFactors
    card: ModelInfo
    projector: Path | None


class _PassedOverError(Exception):
    """The file is well and no model of its own; the message says why."""


@dataclass(frozen=True, slots=True)
class _Projector:
    path: Path
    card: ModelInfo
    source: str

    @property
    def owner(self) -> str:
        """The model's name within the file's, if there is one."""
        return owner_of(self.path.stem)


class _Look:
    """Sorts files into models, broken ones and those that are passed over."""

    def __init__(
        self, now: float, min_age: float, cards: ModelInfoCache, bridge: Container[Path]
    ) -> None:
        self.models: list[_Model] = []
        self.broken: list[SkippedFile] = []
        self.skipped: list[SkippedFile] = []
        self.settles_in = 0.0
        self._now = now
        self._min_age = min_age
        self._cards = cards
        self._bridge = bridge
        self._seen: dict[object, _Model | None] = {}
        self._projectors: dict[Path, list[_Projector]] = {}

    def over(self, looked: ScanResult) -> None:
        """Take in what one source offers."""
        self.broken += looked.broken
        self.skipped += looked.skipped
        offers = (offer for offer in looked.offers if offer.path not in self._bridge)
        for offer in sorted(offers, key=_order):
            try:
                self._take(offer)
            except _PassedOverError as reason:
                self.skipped.append(SkippedFile(offer.path, str(reason), offer.source))
            except DamagedModelError as error:
                self.broken.append(SkippedFile(offer.path, str(error), offer.source))
            except OSError as error:
                reason_given = skip_reason(offer.path, error)
                self.broken.append(SkippedFile(offer.path, reason_given, offer.source))

    def join_projectors(self) -> None:
        """Give every model without a projector of its own the best one in its folder.

        One that bears the beginning of a model's name is only for models that begin so.
        """
        for folder, projectors in self._projectors.items():
            models = [model for model in self.models if model.offers[0].path.parent == folder]
            stems = [model.offers[0].path.stem for model in models]
            owners: dict[Path, list[str]] = {projector.path: [] for projector in projectors}
            for model, stem in zip(models, stems, strict=True):
                suits = suiting(stem, ((one.owner, one) for one in projectors), stems)
                for projector in suits:
                    owners[projector.path].append(model.offers[0].path.name)
                if model.projector is None and suits:
                    model.projector = min(suits, key=_preference).path
            for projector in projectors:
                whose = ", ".join(owners[projector.path]) or "another model"
                reason = f"is a projector, part of {whose}"
                self.skipped.append(SkippedFile(projector.path, reason, projector.source))

    def _take(self, offer: Candidate) -> None:
        path = offer.path
        if not _writable(str(path)):
            raise DamagedModelError("has a path that a command line in config.yaml cannot hold")
        files = _files(path)
        if not files:
            return
        status = [file.stat() for file in files]
        if not all(stat.S_ISREG(one.st_mode) for one in status):
            # Opening a pipe would wait for whoever writes to it.
            raise DamagedModelError("is not a file")
        identity = (status[0].st_dev, status[0].st_ino, offer.adapters)
        if identity in self._seen:
            same = self._seen[identity]
            if same is not None:
                same.offers.append(offer)
            return
        age = self._now - max(one.st_mtime for one in status)
        if not offer.settled and 0 <= age < self._min_age:
            self.settles_in = max(self.settles_in, self._min_age - age)
            raise _PassedOverError(f"changed {age:.0f} s ago and may still be being copied")
        self._seen[identity] = None
        cards = [self._cards.card(file, one) for file, one in zip(files, status, strict=True)]
        if is_projector_name(path.stem) or cards[0].is_projector:
            if offer.source == ollama.NAME:
                # All of Ollama's files lie in one folder, which says nothing.
                raise _PassedOverError("is a projector, part of another model")
            projector = _Projector(path, cards[0], offer.source)
            self._projectors.setdefault(path.parent, []).append(projector)
            return
        card = replace(
            cards[0],
            parameters=sum(part.parameters for part in cards),
            tensors=sum(part.tensors for part in cards),
        )
        reason = _no_model(card)
        if reason:
            raise _PassedOverError(reason)
        facts = card.facts(sum(one.st_size for one in status))
        model = _Model([offer], facts, card, offer.projector)
        self._seen[identity] = model
        self.models.append(model)


def _order(offer: Candidate) -> tuple[bool, int, str]:
    """Within a source: by the length of the way, then by the way.

    A file itself comes before links to it, so that it is listed under its own name.
    """
    if offer.source == ollama.NAME:
        # Its own order says whose the plain names are; sorting is stable.
        return False, 0, ""
    return offer.linked, len(offer.place.parts), str(offer.place)


def _files(path: Path) -> list[Path]:
    """The files of the model; none for a later part, which its first part speaks for."""
    part = split_part(path.name)
    if part is not None and part.number != 1:
        first = path.with_name(split_parts(path.name)[0])
        if not first.exists():
            raise DamagedModelError(f"belongs to {first.name}, which is missing")
        return []
    files = [path.with_name(name) for name in split_parts(path.name)]
    missing = [file.name for file in files[1:] if not file.exists()]
    if missing:
        raise DamagedModelError(f"is incomplete: {missing[0]} is missing")
    return files


def _no_model(card: ModelInfo) -> str:
    """Why the file is no language model, or nothing."""
    if card.kind == "adapter":
        return "is an adapter for another model"
    if card.kind not in {"", "model"}:
        return f"holds no model but a GGUF of type {card.kind}"
    if not card.tokenizer:
        return "is not a language model: it has no tokenizer"
    if not card.tensors:
        return "holds a vocabulary and no weights"
    return ""


def _preference(projector: _Projector) -> tuple[int, str]:
    return rank(projector.card.quantisation), projector.path.name


def _writable(path: str) -> bool:
    """Whether a command line in YAML can name the path: printable, and nothing like a macro."""
    return path.isprintable() and "${" not in path


def _named(
    models: list[_Model], before: Mapping[str, str]
) -> tuple[list[DiscoveredModel], dict[str, str]]:
    """The models with their names and aliases, and the names by path."""
    demo = {id(m): clean(m.offers[0].path.stem) for m in models if m.offers[0].source == DEMO}
    others = [_as_named(model.offers[0]) for model in models if id(model) not in demo]
    names = distinct_names(others, demo.values(), before)
    bare = [demo[id(m)] if id(m) in demo else names[_key(m.offers[0])] for m in models]
    wanted: dict[str, list[str]] = {}
    for name, model in zip(bare, models, strict=True):
        for alias in _known_as(model):
            wanted.setdefault(alias, []).append(name)
    aliases: dict[str, list[str]] = {name: [] for name in bare}
    for alias, owners in wanted.items():
        # What two models are known by is neither's.
        if alias not in aliases and len(owners) == 1:
            aliases[owners[0]].append(alias)
    found = [_found(name, model, aliases[name]) for name, model in zip(bare, models, strict=True)]
    return found, dict(names)


def _found(name: str, model: _Model, aliases: list[str]) -> DiscoveredModel:
    first = model.offers[0]
    return DiscoveredModel(
        bare=name,
        path=first.path,
        facts=model.facts,
        demo=first.source == DEMO,
        source=first.source,
        card=model.card,
        aliases=tuple(sorted(aliases)),
        known_as=tuple(dict.fromkeys(name for offer in model.offers for name in offer.also)),
        projector=model.projector,
        adapters=first.adapters,
        elsewhere=tuple(offer.path for offer in model.offers[1:]),
        place=first.place,
    )


def _known_as(model: _Model) -> dict[str, None]:
    """Every other name that one of its sources has for it, in order."""
    names = [alias.lower() for offer in model.offers for alias in offer.also]
    names += [_as_named(offer).plain for offer in model.offers[1:]]
    return dict.fromkeys(names)


def _as_named(offer: Candidate) -> NamedModel:
    part = split_part(offer.path.name)
    stem = offer.path.stem if part is None else part.base
    if offer.source == ollama.NAME:
        stem = offer.place.name
    return NamedModel(_key(offer), offer.place, stem, offer.apart)


def _key(offer: Candidate) -> str:
    """Two models can share a file: with an adapter it is another model."""
    return "+".join((str(offer.path), *(str(path) for path in offer.adapters)))

"""Discover models: read the files of all sources, merge duplicates and assign names.

Files that are no model on their own (projectors, adapters, later parts) and unusable files are
reported with the reason; none of them stops the rest.

A projector turns images or sound into a model's tokens and is a separate file. File names decide
which projector belongs to a model.
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
"""Precisions of projectors, the preferred first."""
_T = TypeVar("_T")


def is_projector_name(stem: str) -> bool:
    """Return True if a file's name is that of a projector."""
    return "mmproj" in stem.lower()


def projector_owner(stem: str) -> str:
    """Return the model's name within a projector's: `eye` in `mmproj-eye-f16`; empty for none."""
    stem = re.sub(r"mmproj|model", "", stem.lower())
    return re.sub(r"[-_.](?:b?f16|f32|q8_0)$", "", stem).strip("-_.")


def precision_rank(quantisation: str) -> int:
    """Return the rank of a projector's precision; lower is better."""
    kind = quantisation.upper()
    return _PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED)


def matching_projectors(
    model: str, projectors: Iterable[tuple[str, _T]], others: Iterable[str]
) -> list[_T]:
    """Return the projectors, given with their owners, that may belong to the model of this stem.

    A projector whose owner is the beginning of a model's name is only for models that begin so;
    `others` are the stems of all models in the same folder.
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
    """A model and its file, of several the first."""

    bare: str
    """Name without prefix."""
    path: Path
    factors: MemoryFactors
    demo: bool = False
    """True if it is shipped with the project, so that its name has no prefix."""
    source: str = ""
    """Name of its source, for display."""
    info: ModelInfo = field(default_factory=ModelInfo)
    aliases: tuple[str, ...] = ()
    """Names, without prefix, from its sources; each is this model's alone."""
    known_as: tuple[str, ...] = ()
    """Names in the programs of its sources; other models may have the same."""
    projector: Path | None = None
    adapters: tuple[Path, ...] = ()
    """Adapter files that are always loaded with it."""
    elsewhere: tuple[Path, ...] = ()
    """Other paths of the same file, links included."""
    place: PurePath = field(default_factory=PurePath)
    """Folders and name in its source."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """Result of a scan of all sources."""

    found: tuple[DiscoveredModel, ...]
    broken: tuple[SkippedFile, ...]
    """Files that should be models and can't be used."""
    skipped: tuple[SkippedFile, ...]
    """Sound files that are no models on their own, or not yet."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Name of each file found, by its path; the input of the next scan."""
    settles_in: float = 0.0
    """Seconds until every file that is too young now is old enough, if it is not written to."""


def discover(
    stores: ModelStores,
    demo_dir: Path,
    *,
    now: float,
    min_age: float,
    infos: ModelInfoCache | None = None,
    previous_names: Mapping[str, str] | None = None,
    ignored: Container[Path] = (),
) -> Discovery:
    """Scan all sources; a missing folder is empty.

    `now` is the time that files' ages refer to, in seconds since the epoch, and `min_age` the least
    age in seconds. `infos` are the GGUF headers read before, `previous_names` the last
    `Discovery.names`. Files in `ignored` are links created by swapd and so no models.
    """
    scans = [
        *(ollama.scan(store) for store in stores.ollama),
        *(folders.scan(folder, "lm studio") for folder in stores.lmstudio),
        *(huggingface.scan(cache) for cache in stores.hub),
        *(folders.scan(folder, "folder") for folder in stores.folders),
    ]
    classifier = _Classifier(now, min_age, infos or ModelInfoCache(), ignored)
    # The demo models come first, so that a copy elsewhere does not hide them.
    classifier.add(folders.scan_folder(demo_dir, DEMO))
    for scan in scans:
        classifier.add(scan)
    classifier.assign_projectors()
    found, names = _assign_names(classifier.models, previous_names or {})
    return Discovery(
        found=tuple(sorted(found, key=lambda model: (not model.demo, model.bare))),
        broken=_sorted(classifier.broken),
        skipped=_sorted(classifier.skipped),
        names=names,
        settles_in=classifier.settles_in,
    )


def _sorted(files: Iterable[SkippedFile]) -> tuple[SkippedFile, ...]:
    return tuple(sorted(dict.fromkeys(files), key=lambda one: (one.path, one.reason)))


@dataclass
class _Model:
    """A file with all its candidates; the first one names it."""

    candidates: list[Candidate]
    factors: MemoryFactors
    info: ModelInfo
    projector: Path | None


class _SkippedError(Exception):
    """A sound file that is no model on its own; the message is the reason."""


@dataclass(frozen=True, slots=True)
class _Projector:
    path: Path
    info: ModelInfo
    source: str

    @property
    def owner(self) -> str:
        """Name of its model within the file's; empty for none."""
        return projector_owner(self.path.stem)


class _Classifier:
    """Sorts candidates into models, broken files and skipped files."""

    def __init__(
        self, now: float, min_age: float, infos: ModelInfoCache, ignored: Container[Path]
    ) -> None:
        self.models: list[_Model] = []
        self.broken: list[SkippedFile] = []
        self.skipped: list[SkippedFile] = []
        self.settles_in = 0.0
        self._now = now
        self._min_age = min_age
        self._infos = infos
        self._ignored = ignored
        self._seen: dict[object, _Model | None] = {}
        self._projectors: dict[Path, list[_Projector]] = {}

    def add(self, scan: ScanResult) -> None:
        """Classify the candidates of one source."""
        self.broken += scan.broken
        self.skipped += scan.skipped
        candidates = (one for one in scan.candidates if one.path not in self._ignored)
        for candidate in sorted(candidates, key=_order):
            try:
                self._add_candidate(candidate)
            except _SkippedError as reason:
                self.skipped.append(SkippedFile(candidate.path, str(reason), candidate.source))
            except DamagedModelError as error:
                self.broken.append(SkippedFile(candidate.path, str(error), candidate.source))
            except OSError as error:
                message = skip_reason(candidate.path, error)
                self.broken.append(SkippedFile(candidate.path, message, candidate.source))

    def assign_projectors(self) -> None:
        """Assign the best projector in its folder to every model without one.

        A projector whose owner is the beginning of a model's name is only for models that begin so.
        """
        for folder, projectors in self._projectors.items():
            models = [model for model in self.models if model.candidates[0].path.parent == folder]
            stems = [model.candidates[0].path.stem for model in models]
            owners: dict[Path, list[str]] = {projector.path: [] for projector in projectors}
            for model, stem in zip(models, stems, strict=True):
                matching = matching_projectors(
                    stem, ((one.owner, one) for one in projectors), stems
                )
                for projector in matching:
                    owners[projector.path].append(model.candidates[0].path.name)
                if model.projector is None and matching:
                    model.projector = min(matching, key=_preference).path
            for projector in projectors:
                models_of = ", ".join(owners[projector.path]) or "another model"
                reason = f"is a projector, part of {models_of}"
                self.skipped.append(SkippedFile(projector.path, reason, projector.source))

    def _add_candidate(self, candidate: Candidate) -> None:
        path = candidate.path
        if not _fits_command(str(path)):
            raise DamagedModelError("has a path that a command line in config.yaml cannot hold")
        files = _files(path)
        if not files:
            return
        status = [file.stat() for file in files]
        if not all(stat.S_ISREG(one.st_mode) for one in status):
            # Opening a pipe would block until another process writes to it.
            raise DamagedModelError("is not a file")
        # The same file may be reached by several paths; each adds a candidate to its model.
        identity = (status[0].st_dev, status[0].st_ino, candidate.adapters)
        if identity in self._seen:
            same = self._seen[identity]
            if same is not None:
                same.candidates.append(candidate)
            return
        age = self._now - max(one.st_mtime for one in status)
        if not candidate.settled and 0 <= age < self._min_age:
            self.settles_in = max(self.settles_in, self._min_age - age)
            raise _SkippedError(f"changed {age:.0f} s ago and may still be being copied")
        self._seen[identity] = None
        infos = [self._infos.model_info(file, one) for file, one in zip(files, status, strict=True)]
        if is_projector_name(path.stem) or infos[0].is_projector:
            if candidate.source == ollama.NAME:
                # All files of Ollama are in one folder, so the folder gives no owner.
                raise _SkippedError("is a projector, part of another model")
            projector = _Projector(path, infos[0], candidate.source)
            self._projectors.setdefault(path.parent, []).append(projector)
            return
        info = infos[0]
        if len(infos) > 1:
            info = replace(
                info,
                parameters=sum(part.parameters for part in infos),
                tensors=sum(part.tensors for part in infos),
            )
        reason = _not_a_model(info)
        if reason:
            raise _SkippedError(reason)
        factors = info.memory_factors(sum(one.st_size for one in status))
        model = _Model([candidate], factors, info, candidate.projector)
        self._seen[identity] = model
        self.models.append(model)


def _order(candidate: Candidate) -> tuple[bool, int, str]:
    """Return the sort key within a source: by depth, then by path.

    A file comes before links to it, so that it is listed under its own name.
    """
    if candidate.source == ollama.NAME:
        # The source's order decides which tags get the plain names; sorting is stable.
        return False, 0, ""
    return candidate.linked, len(candidate.place.parts), str(candidate.place)


def _files(path: Path) -> list[Path]:
    """Return the files of the model; none for a later part, which belongs to its first part."""
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


def _not_a_model(info: ModelInfo) -> str:
    """Return why the file is no language model; empty if it is one."""
    if info.kind == "adapter":
        return "is an adapter for another model"
    if info.kind not in {"", "model"}:
        return f"holds no model but a GGUF of type {info.kind}"
    if not info.tokenizer:
        return "is not a language model: it has no tokenizer"
    if not info.tensors:
        return "holds a vocabulary and no weights"
    return ""


def _preference(projector: _Projector) -> tuple[int, str]:
    return precision_rank(projector.info.quantisation), projector.path.name


def _fits_command(path: str) -> bool:
    """Return True if a command in config.yaml can hold the path: printable, without macros."""
    return path.isprintable() and "${" not in path


def _assign_names(
    models: list[_Model], previous: Mapping[str, str]
) -> tuple[list[DiscoveredModel], dict[str, str]]:
    """Return the models with names and aliases, and the names by path."""
    # Names: demo models keep their stems, all others follow the rule.
    first = {id(model): model.candidates[0] for model in models}
    demo = {key: clean(one.path.stem) for key, one in first.items() if one.source == DEMO}
    others = [_as_named(one) for key, one in first.items() if key not in demo]
    names = distinct_names(others, demo.values(), previous)
    bare = [demo[key] if key in demo else names[_key(one)] for key, one in first.items()]
    # Aliases: a name that two models are known by belongs to neither.
    owners_of: dict[str, list[str]] = {}
    for name, model in zip(bare, models, strict=True):
        for alias in _known_as(model):
            owners_of.setdefault(alias, []).append(name)
    aliases: dict[str, list[str]] = {name: [] for name in bare}
    for alias, owners in owners_of.items():
        if alias not in aliases and len(owners) == 1:
            aliases[owners[0]].append(alias)
    found = [
        _discovered(name, model, aliases[name]) for name, model in zip(bare, models, strict=True)
    ]
    return found, dict(names)


def _discovered(name: str, model: _Model, aliases: list[str]) -> DiscoveredModel:
    first = model.candidates[0]
    return DiscoveredModel(
        bare=name,
        path=first.path,
        factors=model.factors,
        demo=first.source == DEMO,
        source=first.source,
        info=model.info,
        aliases=tuple(sorted(aliases)),
        known_as=tuple(dict.fromkeys(name for one in model.candidates for name in one.known_as)),
        projector=model.projector,
        adapters=first.adapters,
        elsewhere=tuple(one.path for one in model.candidates[1:]),
        place=first.place,
    )


def _known_as(model: _Model) -> dict[str, None]:
    """Return every other name of the model in its sources, in order."""
    names = [alias.lower() for one in model.candidates for alias in one.known_as]
    names += [_as_named(one).default for one in model.candidates[1:]]
    return dict.fromkeys(names)


def _as_named(candidate: Candidate) -> NamedModel:
    part = split_part(candidate.path.name)
    stem = candidate.path.stem if part is None else part.base
    if candidate.source == ollama.NAME:
        stem = candidate.place.name
    return NamedModel(_key(candidate), candidate.place, stem, clean(candidate.fallback_name))


def _key(candidate: Candidate) -> str:
    """Return the key of the model: its file and adapters, since models can share a file."""
    return "+".join((str(candidate.path), *(str(path) for path in candidate.adapters)))

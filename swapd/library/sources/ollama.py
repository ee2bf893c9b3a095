"""Scan the Ollama store in place.

    manifests/HOST/NAMESPACE/MODEL/TAG    JSON: the layers of a model, and a description of it
    blobs/sha256-HEX                      the bytes of a layer, or of the description

The media type of a layer gives its kind. llama.cpp needs the files of `model`, `adapter` and
`projector`. `template`, `system`, `params` and `license` are Ollama's own and not used: a GGUF file
contains its template, and system prompt and parameters belong to the request or to
custom_models.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import msgspec

from swapd.library.sources.base import Candidate, ScanResult, SkippedFile, skip_reason

NAME = "ollama"
HOST = "registry.ollama.ai"
NAMESPACE = "library"
"""Host and namespace of a name without any; dropped from names for that reason."""
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{1,64})")
_MAX_BYTES = 2**22
"""Most bytes of a manifest or a description; real ones are a thousand times smaller."""
_UNKNOWN = "unknown"


class DamagedManifestError(Exception):
    """An unusable manifest; the message is the end of a sentence."""


class _NoModelError(Exception):
    """A sound manifest without a GGUF model; the message says what it holds."""


class _Layer(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")
    digest: str = ""


class _Manifest(msgspec.Struct):
    layers: list[_Layer] | None = None
    config: _Layer | None = None


class _Description(msgspec.Struct):
    model_type: str = ""
    """Number of parameters, such as `27.4B`."""
    file_type: str = ""
    """Quantisation."""


@dataclass(frozen=True, slots=True)
class OllamaTag:
    """A model's name in Ollama."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def family(self) -> str:
        """Name without tag, and without the default host and namespace."""
        if self.host != HOST:
            return f"{self.host}/{self.namespace}/{self.model}"
        return self.model if self.namespace == NAMESPACE else f"{self.namespace}/{self.model}"

    def __str__(self) -> str:
        return f"{self.family}:{self.tag}"


def scan(store: Path) -> ScanResult:
    """Find all models of the store; a missing store is empty.

    Those of the default host and namespace come first, so that they keep the plain names.
    """
    candidates: list[Candidate] = []
    broken: list[SkippedFile] = []
    skipped: list[SkippedFile] = []
    for tag, path in _manifests(store, broken):
        try:
            candidates.append(_candidate(store, tag, path))
        except _NoModelError as reason:
            skipped.append(SkippedFile(path, str(reason), NAME))
        except DamagedManifestError as error:
            broken.append(SkippedFile(path, str(error), NAME))
        except OSError as error:
            broken.append(SkippedFile(path, skip_reason(path, error), NAME))
    return ScanResult(tuple(candidates), tuple(broken), tuple(skipped))


def parse_manifest(data: bytes) -> _Manifest:
    """Decode a manifest. Raises DamagedManifestError."""
    try:
        return msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DamagedManifestError("is no manifest of Ollama: not the expected JSON") from error


def _manifests(store: Path, broken: list[SkippedFile]) -> Iterator[tuple[OllamaTag, Path]]:
    """Yield every tag with its manifest, sorted, the default host and namespace first."""
    found = [(OllamaTag(*parts), path) for parts, path in _below(store / "manifests", (), broken)]

    def order(item: tuple[OllamaTag, Path]) -> tuple[bool, bool, str, bool, str]:
        tag = item[0]
        not_default = tag.host != HOST, tag.namespace != NAMESPACE
        return (*not_default, tag.family, tag.tag != "latest", tag.tag)

    yield from sorted(found, key=order)


def _below(
    folder: Path, parents: tuple[str, ...], broken: list[SkippedFile]
) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Yield the files four levels below the manifests' folder, with the names of the levels."""
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        broken.append(SkippedFile(folder, skip_reason(folder, error), NAME))
        return
    for path in entries:
        if path.name.startswith("."):
            continue
        names = (*parents, path.name)
        if len(names) < 4:
            yield from _below(path, names, broken)
        elif not path.is_dir():
            yield names, path


def _candidate(store: Path, tag: OllamaTag, path: Path) -> Candidate:
    manifest = parse_manifest(_read(path))
    layers = manifest.layers or []
    files = {
        kind: [_blob(store, layer) for layer in layers if _kind(layer) == kind]
        for kind in ("model", "adapter", "projector")
    }
    if not files["model"]:
        if any(_kind(layer) == "tensor" for layer in layers):
            raise _NoModelError("holds single tensors and no GGUF file")
        raise _NoModelError("holds no model; the model it names runs elsewhere")
    if len(files["model"]) > 1:
        raise DamagedManifestError(f"has {len(files['model'])} model layers, where one can be used")
    blob = files["model"][0]
    if not blob.exists():
        raise DamagedManifestError(f"names {blob.name}, which is missing")
    size, quant = _labels(store, manifest)
    folder = re.sub("[/:]", "-", tag.family)
    return Candidate(
        path=blob,
        source=NAME,
        place=PurePath(folder, f"{folder}-{size}-{quant}"),
        fallback_name=f"{folder}:{tag.tag}",
        known_as=(str(tag),),
        settled=True,
        projector=files["projector"][0] if files["projector"] else None,
        adapters=tuple(files["adapter"]),
    )


def _kind(layer: _Layer) -> str:
    """Return the part of the media type behind Ollama's prefix, without parameters."""
    media = layer.media_type.partition(";")[0].strip()
    return media.removeprefix(_LAYER) if media.startswith(_LAYER) else ""


def _blob(store: Path, layer: _Layer) -> Path:
    match = _DIGEST.fullmatch(layer.digest)
    if match is None:
        # The digest becomes part of a path and comes from an untrusted file.
        raise DamagedManifestError(f"has a layer whose digest is no SHA-256: {layer.digest[:80]!r}")
    return (store / "blobs" / f"sha256-{match[1]}").absolute()


def _labels(store: Path, manifest: _Manifest) -> tuple[str, str]:
    """Return size and quantisation from the description; `unknown` where it has none."""
    if manifest.config is None:
        return _UNKNOWN, _UNKNOWN
    try:
        data = _read(_blob(store, manifest.config))
        described = msgspec.json.decode(data, type=_Description)
    except (OSError, DamagedManifestError, msgspec.MsgspecError, UnicodeError, RecursionError):
        # The description only affects the name; the model itself may be intact.
        return _UNKNOWN, _UNKNOWN
    return _label(described.model_type), _label(described.file_type)


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text) or _UNKNOWN


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DamagedManifestError("is too long for a manifest")
    return data

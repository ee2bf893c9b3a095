"""Models of a Hugging Face repository: its quantisations, their files and projectors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from swapd.config.errors import nearest
from swapd.gguf.reader import split_part
from swapd.library.discovery import (
    is_projector_name,
    matching_projectors,
    precision_rank,
    projector_owner,
)
from swapd.library.download import Download, DownloadError
from swapd.library.sources.huggingface import QUANTISATION

PREFIXES = ("hf:", "hf.co/", "huggingface.co/")
DEFAULT_QUANTISATION = "Q4_K_M"
"""Usual choice where the user names no quantisation."""
_REPO = re.compile(r"(?!.*\.\.)[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A model of a repository: one file, or several parts."""

    label: str
    files: tuple[Download, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """The models and projectors of a repository."""

    name: str
    """`owner/repo`."""
    quantisations: tuple[Quantisation, ...]
    """All models, smallest first; at least one."""
    projectors: tuple[Download, ...]

    @property
    def default(self) -> str:
        """Label to suggest where several quantisations exist."""
        labels = {one.label.upper() for one in self.quantisations}
        return (
            DEFAULT_QUANTISATION if DEFAULT_QUANTISATION in labels else self.quantisations[0].label
        )

    def find(self, label: str) -> Quantisation:
        """Return the quantisation of this label. Raises DownloadError with the nearest one."""
        labels = {one.label.upper(): one for one in self.quantisations}
        if label.upper() in labels:
            return labels[label.upper()]
        near = nearest(label, labels)
        hint = f"; did you mean {near}?" if near else f"; there are: {', '.join(labels)}"
        raise DownloadError(f"{self.name} has no quantisation {label}{hint}")

    def projector_for(self, chosen: Quantisation) -> Download | None:
        """Return the best projector that belongs to the model, the one that sync will choose."""
        owners = [(projector_owner(file.target.stem), file) for file in self.projectors]
        stems = [one.files[0].target.stem for one in self.quantisations]
        matching = matching_projectors(chosen.files[0].target.stem, owners, stems)
        return min(
            matching,
            key=lambda file: (precision_rank(_quantisation(file.target.stem)), file.target),
            default=None,
        )


def parse_reference(reference: str) -> tuple[str, str]:
    """Split `owner/repo[:quant]` into repository and label. Raises DownloadError."""
    repo, _, label = reference.partition(":")
    if not _REPO.fullmatch(repo):
        message = f"hf:{reference} is no model of the hub: it must be hf:owner/repo[:quant]"
        raise DownloadError(message)
    return repo, label


def read_repository(repo: str, models_dir: Path, env: Mapping[str, str]) -> HubRepository:
    """List the models of `owner/repo`, to be stored below `models_dir`. Raises DownloadError."""
    files = _gguf_files(repo, models_dir / repo, env)
    projectors = [file for file in files if is_projector_name(file.target.stem)]
    found = _quantisations([file for file in files if file not in projectors])
    if not found:
        raise DownloadError(f"{repo} has no GGUF files of models")
    return HubRepository(repo, tuple(found), tuple(projectors))


def _quantisation(stem: str) -> str:
    """Return the quantisation in a file's name; empty for none."""
    return str((QUANTISATION.findall(stem) or [""])[-1])


def _gguf_files(repo: str, folder: Path, env: Mapping[str, str]) -> list[Download]:
    """List the repository's GGUF files except importance matrices, which only quantising needs."""
    # huggingface_hub reads its settings at import; those of .env apply to it too.
    os.environ.update({k: v for k, v in env.items() if k.startswith("HF_")})
    commit, siblings, headers, endpoint = _model_info(repo)
    found = []
    for name, size, sha256 in siblings:
        file = PurePosixPath(name)
        if file.suffix.lower() == ".gguf" and file.name[0] != "." and "imatrix" not in name.lower():
            url = f"{endpoint}/{repo}/resolve/{commit}/{quote(name)}"
            found.append(Download(url, folder / file.name, size, sha256, headers))
    return found


def _quantisations(files: list[Download]) -> list[Quantisation]:
    """Group the files into models, smallest first."""
    bases: dict[str, list[Download]] = {}
    for file in files:
        part = split_part(file.target.name)
        bases.setdefault(part.base if part else file.target.stem, []).append(file)
    labels = [_quantisation(base) or base for base in bases]
    named = [
        Quantisation(label if labels.count(label) == 1 else base, tuple(parts))
        for label, (base, parts) in zip(labels, bases.items(), strict=True)
    ]
    return sorted(named, key=lambda one: (one.size, one.label))


def _model_info(repo: str) -> tuple[str, list[tuple[str, int, str]], dict[str, str], str]:
    """Query the hub: commit, files with size and sum, request headers, endpoint.

    Raises DownloadError.
    """
    import httpx
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    try:
        info = api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError as error:
        message = f"there is no model {repo} at {api.endpoint}, or none for your HF_TOKEN"
        raise DownloadError(message) from error
    except (KeyError, TypeError) as error:
        message = f"{api.endpoint} does not describe {repo} as the hub does"
        raise DownloadError(f"{message}: {error} is missing or of another type") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(f"{api.endpoint} does not respond for {repo}: {reason}") from error
    files = [(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()]
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return info.sha or "main", files, headers, api.endpoint

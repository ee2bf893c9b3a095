"""What the Hugging Face hub has of a model: its quantisations, and the files of one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from swapd.cli.output import FailedError, show_bytes, table, waiting
from swapd.config.errors import nearest
from swapd.gguf.reader import split_part
from swapd.library.discovery import is_projector_name, owner_of, rank, suiting
from swapd.library.download import Download

PREFIXES = ("hf:", "hf.co/", "huggingface.co/")
USUAL = "Q4_K_M"
"""What most people want who do not say what they want."""
_QUANT = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d(?:_[a-z0-9]+)*|b?f16|f32|mxfp4(?:_moe)?|tq\d_\d)(?![a-z0-9])",
    re.IGNORECASE,
)
_REPO = re.compile(r"(?!.*\.\.)[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """One model file of a repository, or several parts of one."""

    label: str
    files: tuple[Download, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def files_of(asked: str, models_dir: Path, env: Mapping[str, str]) -> list[Download]:
    """The files that `owner/repo[:quant]` means, with the projector of that model if it has one.

    Asks at a terminal where several models could be meant. Raises FailedError.
    """
    repo, _, label = asked.partition(":")
    if not _REPO.fullmatch(repo):
        raise FailedError(f"hf:{asked} is no model of the hub: it must be hf:owner/repo[:quant]")
    folder = models_dir / repo
    files = _offered(repo, folder, env)
    projectors = [file for file in files if is_projector_name(file.target.stem)]
    found = _quantisations([file for file in files if file not in projectors])
    if not found:
        raise FailedError(f"{repo} has no GGUF files of models")
    chosen = _chosen(repo, label, found)
    projector = _projector(chosen, found, projectors)
    if projector is None:
        return list(chosen.files)
    size = show_bytes(projector.size)
    print(f"with    {projector.target.name}, the projector that belongs to it ({size})")
    return [*chosen.files, projector]


def _projector(
    chosen: Quantisation, found: list[Quantisation], projectors: list[Download]
) -> Download | None:
    """The best of those that belong to the model, as sync will choose it."""
    named = [(owner_of(file.target.stem), file) for file in projectors]
    others = [one.files[0].target.stem for one in found]
    suits = suiting(chosen.files[0].target.stem, named, others)
    return min(suits, key=lambda file: (rank(_quant(file.target.stem)), file.target), default=None)


def _chosen(repo: str, label: str, found: list[Quantisation]) -> Quantisation:
    labels = {one.label.upper(): one for one in found}
    if label:
        if label.upper() in labels:
            return labels[label.upper()]
        near = nearest(label, labels)
        hint = f"; did you mean {near}?" if near else f"; there are: {', '.join(labels)}"
        raise FailedError(f"{repo} has no quantisation {label}{hint}")
    if len(found) == 1:
        return found[0]
    rows = [[str(i), one.label, show_bytes(one.size)] for i, one in enumerate(found, 1)]
    usual = USUAL if USUAL in labels else found[0].label
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        said = "\n".join(table(["", "QUANT", ">SIZE"], rows))
        raise FailedError(f"{repo} has several; say which, such as hf:{repo}:{usual}\n{said}")
    print("\n".join(table(["", "QUANT", ">SIZE"], rows)), file=sys.stderr)
    print(f"Which one? [{usual}] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip() or usual
    if answer.isdigit() and 1 <= int(answer) <= len(found):
        return found[int(answer) - 1]
    return _chosen(repo, answer, found)


def _quant(stem: str) -> str:
    """The quantisation that a name bears; empty for none."""
    return str((_QUANT.findall(stem) or [""])[-1])


def _offered(repo: str, folder: Path, env: Mapping[str, str]) -> list[Download]:
    """The repository's GGUF files but for the tables that only quantising needs."""
    # The library reads its settings when it is imported; .env counts for it too.
    os.environ.update({k: v for k, v in env.items() if k.startswith("HF_")})
    with waiting(f"asking the hub for {repo}"):
        sha, siblings, headers, address = _repository(repo)
    found = []
    for name, size, sha256 in siblings:
        file = PurePosixPath(name)
        if file.suffix.lower() == ".gguf" and file.name[0] != "." and "imatrix" not in name.lower():
            url = f"{address}/{repo}/resolve/{sha}/{_quoted(name)}"
            found.append(Download(url, folder / file.name, size, sha256, headers))
    return found


def _quantisations(files: list[Download]) -> list[Quantisation]:
    """The models in them, smallest first."""
    bases: dict[str, list[Download]] = {}
    for file in files:
        part = split_part(file.target.name)
        bases.setdefault(part.base if part else file.target.stem, []).append(file)
    labels = [_quant(base) or base for base in bases]
    named = [
        Quantisation(label if labels.count(label) == 1 else base, tuple(parts))
        for label, (base, parts) in zip(labels, bases.items(), strict=True)
    ]
    return sorted(named, key=lambda one: (one.size, one.label))


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _repository(repo: str) -> tuple[str, list[tuple[str, int, str]], dict[str, str], str]:
    """Commit, files with size and sum, headers to ask with, and where. Raises FailedError."""
    import httpx
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    try:
        info = api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError as error:
        message = f"there is no model {repo} at {api.endpoint}, or none for your HF_TOKEN"
        raise FailedError(message) from error
    except (KeyError, TypeError) as error:
        message = f"{api.endpoint} does not tell of {repo} as the hub does"
        raise FailedError(f"{message}: {error} is missing or of another kind") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise FailedError(f"{api.endpoint} does not answer for {repo}: {said}") from error
    files = [(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()]
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return info.sha or "main", files, headers, api.endpoint

"""What the Hugging Face hub has of a model: its quantisations, and the files of one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from swapd.config.problems import nearest
from swapd.config.split import part_of
from swapd.doors.cli.fetch import Wanted
from swapd.doors.cli.say import FailedError, show_bytes, table, waiting

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
    files: tuple[Wanted, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def files_of(asked: str, models_dir: Path, env: Mapping[str, str]) -> list[Wanted]:
    """The files that `owner/repo[:quant]` means. Asks at a terminal where several could be meant.

    Raises FailedError.
    """
    repo, _, label = asked.partition(":")
    if not _REPO.fullmatch(repo):
        raise FailedError(f"{asked} is no model of the hub: it must be hf:owner/repo[:quant]")
    folder = models_dir / repo
    found = _quantisations(repo, folder, env)
    if not found:
        raise FailedError(f"{repo} has no GGUF files")
    return list(_chosen(repo, label, found).files)


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


def _quantisations(repo: str, folder: Path, env: Mapping[str, str]) -> list[Quantisation]:
    """All that the repository offers, smallest first."""
    # The library reads its settings when it is imported; .env counts for it too.
    os.environ.update({k: v for k, v in env.items() if k.startswith("HF_")})
    with waiting(f"asking the hub for {repo}"):
        sha, siblings, headers, address = _repository(repo)
    bases: dict[str, list[Wanted]] = {}
    for name, size, sha256 in siblings:
        file = PurePosixPath(name)
        if file.suffix.lower() != ".gguf" or "mmproj" in file.stem.lower() or file.name[0] == ".":
            continue
        part = part_of(file.name)
        url = f"{address}/{repo}/resolve/{sha}/{_quoted(name)}"
        wanted = Wanted(url, folder / file.name, size, sha256, headers)
        bases.setdefault(part.base if part else file.stem, []).append(wanted)
    labels = [(_QUANT.findall(base) or [base])[-1] for base in bases]
    named = [
        Quantisation(label if labels.count(label) == 1 else base, tuple(files))
        for label, (base, files) in zip(labels, bases.items(), strict=True)
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
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise FailedError(f"{api.endpoint} does not answer for {repo}: {said}") from error
    files = [(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()]
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return info.sha or "main", files, headers, api.endpoint

"""Models as they are to stand in config.yaml: what was found, and custom_models.yaml over it. Pure.

The settings of one model are put together here; `generate` makes the file of all of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swapd.config.custom_models import CustomModels
from swapd.config.env import SyncSettings
from swapd.config.errors import Problem, did_you_mean
from swapd.config.macros import fill_in
from swapd.config.schema import CustomModelConfig, alias_id
from swapd.config.units import parse_size, show_size
from swapd.config.yaml_nodes import MappingNode, ScalarNode
from swapd.domain.model_names import SpellingIndex
from swapd.gguf.llama_flags import LlamaFlags, parse_llama_flags
from swapd.gguf.memory_estimate import MemoryFactors, estimate, fitting_context
from swapd.library.discovery import DiscoveredModel

BUDGET = "80%"
"""What all workers together may take of a machine nobody said anything about."""
KEPT = ".swapd/kv"
"""Where our workers leave what their caches hold when they go, seen from the home, in which they
run."""
_WORKERS_KEYS = (
    "sampler_args",
    "ctx_size",
    "adapters",
    "mmproj",
    "jinja",
    "chat_template_file",
    "chat_template_kwargs",
)
"""Keys of custom_models.yaml that become flags of our own worker."""
_OURS = frozenset({*_WORKERS_KEYS, "base_model", "aliases", "cmd", "metadata"})
"""Keys of custom_models.yaml that do not go over as they are."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model as it is to stand in config.yaml."""

    name: str
    bare: str
    """Its name without prefix."""
    entry: dict[str, Any]
    context: int
    """Tokens; 0 where a command of its author's decides it."""
    found: DiscoveredModel | None
    """The file that it serves, if it was found."""
    custom: str = ""
    """The key in custom_models.yaml that speaks of it, if one does."""
    files: tuple[tuple[str, Path], ...] = ()
    """Other files that its author names, each with the key that does."""


@dataclass(frozen=True, slots=True)
class AssembledEntries:
    """All models, sorted by name, and what their author should know."""

    models: tuple[ModelEntry, ...]
    warnings: tuple[Problem, ...]


def assemble(
    found: Iterable[DiscoveredModel],
    custom: CustomModels,
    settings: SyncSettings,
    total_memory: int,
    home: Path,
    size_of: Callable[[Path], int],
) -> AssembledEntries:
    """Put every model together. Relative paths of its author's are meant from `home`.

    `size_of` tells the size of a file, 0 if there is none.
    """
    work = _Work(custom, settings, _budget(custom, total_memory), home, size_of)
    work.find(tuple(found))
    for bare, model in work.by_bare.items():
        key = work.keys.get(bare, "")
        work.add(bare, model, key)
    for key in custom.models:
        if key not in work.keys.values():
            work.add_unfound(key)
    work.add_aliases()
    made = sorted(work.models.values(), key=lambda one: one.name)
    return AssembledEntries(tuple(made), (*custom.warnings, *work.warnings))


@dataclass
class _Work:
    custom: CustomModels
    settings: SyncSettings
    budget: int
    home: Path
    size_of: Callable[[Path], int]
    models: dict[str, ModelEntry] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)
    by_bare: dict[str, DiscoveredModel] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """From the names of models found to the keys of their sections."""
    known_as: dict[str, str] = field(default_factory=dict)
    """From the aliases of models found to their names."""

    def find(self, found: tuple[DiscoveredModel, ...]) -> None:
        """Say which section speaks of which model: by its name, else by one of its aliases."""
        self.by_bare = {model.bare: model for model in found}
        self.known_as = {alias: model.bare for model in found for alias in model.aliases}
        for key, wanted in self.custom.models.items():
            if wanted.base_model:
                if key in self.by_bare:
                    message = f"{key} is itself a model that was found; an alias needs another name"
                    self.warnings.append(self.custom.warn(key, message, "base_model"))
                continue
            if key in self.by_bare:
                self.keys[key] = key
        for key, bare in self.known_as.items():
            wanted_here = self.custom.models.get(key)
            if wanted_here is None or wanted_here.base_model:
                continue
            if bare in self.keys:
                message = f"means {bare}, which has a section already"
                self.warnings.append(self.custom.warn(key, message))
            else:
                self.keys[bare] = key

    def add(self, bare: str, model: DiscoveredModel | None, key: str) -> None:
        """Add one model: found, custom or both."""
        wanted = self.custom.models[key] if key else CustomModelConfig()
        name = bare if model and model.demo else self.settings.prefix + bare
        context, files = 0, tuple[tuple[str, Path], ...]()
        if wanted.cmd:
            entry = self._command(bare, key, model, wanted)
        else:
            assert model is not None
            flags = self._flags(model, wanted)
            parallel = ("--parallel", str(self.settings.parallel))
            argv = (*parallel, *shlex.split(flags), *words_of(wanted.sampler_args))
            terms = parse_llama_flags(argv, own=True)
            context = wanted.ctx_size or self._context(model.facts, terms)
            files = self._files(wanted)
            entry = self._worker(key, model, context, flags)
            # A context among the author's own flags stands last, and counts.
            told = terms if terms.context is not None else replace(terms, context=context)
            entry |= self._need(f"models.{name}", self._estimate(model.facts, told))
        if key:
            for own, there in sorted(self.custom.section(key).entries.items()):
                if own not in _OURS:
                    entry[own] = there.node
        metadata = self._metadata(key, model, wanted)
        if metadata:
            entry["metadata"] = metadata
        if wanted.aliases:
            entry["aliases"] = [alias_id(alias) for alias in wanted.aliases]
        self.models[name] = ModelEntry(name, bare, entry, context, model, key, files)

    def add_unfound(self, key: str) -> None:
        """Add a model of its author's own: another use of a file that was found, or a command."""
        wanted = self.custom.models[key]
        base = None
        if wanted.base_model:
            if key in self.by_bare:
                return
            base = self._base(key, wanted.base_model)
            if base is None:
                return
        elif key in self.known_as:
            return
        elif not wanted.cmd:
            hint = did_you_mean(key, self.by_bare)
            message = f"no model of this name was found, and it has no cmd{hint}"
            self.warnings.append(self.custom.warn(key, message))
            return
        elif any("${MODEL_PATH}" in word for word in _uncommented(wanted.cmd)):
            hint = did_you_mean(key, self.by_bare)
            message = f"no model of this name was found for the ${{MODEL_PATH}} in its cmd{hint}"
            self.warnings.append(self.custom.warn(key, message))
            return
        self.add(key, base, key)

    def _base(self, key: str, asked: str) -> DiscoveredModel | None:
        names = {model.bare: model.aliases for model in self.by_bare.values()}
        meant = SpellingIndex(names, self.settings.prefix).find(asked)
        if isinstance(meant, str):
            return self.by_bare[meant]
        if meant is not None:
            message = str(meant)
        elif asked in self.custom.models:
            message = f"{asked} is no model that was found; name the one whose file it is"
        else:
            message = f"no model named {asked} was found{did_you_mean(asked, self.by_bare)}"
        self.warnings.append(self.custom.warn(key, message, "base_model"))
        return None

    def add_aliases(self) -> None:
        """Let every model answer to its other names, where each of them means only one."""
        taken = {alias for made in self.models.values() for alias in made.entry.get("aliases", ())}
        for pass_over in (_bare_name, _found_aliases):
            for made in self.models.values():
                for alias in pass_over(made):
                    if alias not in self.models and alias not in taken:
                        taken.add(alias)
                        made.entry["aliases"] = [*made.entry.get("aliases", ()), alias]

    def _worker(self, key: str, model: DiscoveredModel, context: int, flags: str) -> dict[str, Any]:
        """A model served by our own worker."""
        trained = model.facts.trained_context
        if trained and context > trained:
            message = f"{context} is more than the {trained} tokens that the model was trained for"
            self.warnings.append(self.custom.warn(key, message, "ctx_size"))
        words = ["--model", str(model.path), "--ctx-size", str(context)]
        words += ["--parallel", str(self.settings.parallel), "--slot-save-path", KEPT]
        sampler = self.custom.models[key].sampler_args.strip() if key else ""
        parts = ("${worker}", shlex.join(words), flags, sampler)
        return {"cmd": " ".join(part for part in parts if part)}

    def _flags(self, model: DiscoveredModel, wanted: CustomModelConfig) -> str:
        """Our worker's flags for what stands beside the model."""
        words: list[str] = []
        for path in model.adapters:
            words += ["--lora", str(path)]
        for adapter, file in wanted.adapters.items():
            words += ["--adapter", f"{adapter}={self._path(file)}"]
        if wanted.jinja:
            words.append("--jinja")
        if wanted.chat_template_file:
            words += ["--chat-template-file", str(self._path(wanted.chat_template_file))]
        if wanted.chat_template_kwargs:
            words += ["--chat-template-kwargs", json.dumps(wanted.chat_template_kwargs)]
        return shlex.join(words)

    def _context(self, facts: MemoryFactors, terms: LlamaFlags) -> int:
        """As much as fits, for a model about whose context nobody said anything."""
        usual = self.settings.ctx_size
        return fitting_context(
            facts, usual, self.budget, lambda n: self._estimate(facts, replace(terms, context=n))
        )

    def _estimate(self, facts: MemoryFactors, terms: LlamaFlags) -> int:
        besides = sum(self.size_of(self.home / path) for path in (*terms.besides, terms.draft))
        return estimate(facts, terms) + besides

    def _command(
        self, bare: str, key: str, model: DiscoveredModel | None, wanted: CustomModelConfig
    ) -> dict[str, Any]:
        """A model served by the command that the author gives."""
        cmd = wanted.cmd
        words = [cmd] if isinstance(cmd, str) else cmd
        for own in _WORKERS_KEYS:
            heeded = own == "mmproj" and any("${MMPROJ_PATH}" in word for word in words)
            if getattr(wanted, own) and not heeded:
                message = "has no effect beside cmd; write it there"
                self.warnings.append(self.custom.warn(key, message, own))
        projector = self._projector(model, wanted)
        paths = {"MMPROJ_PATH": projector, "MODEL_PATH": model.path if model else None}
        filled: str | list[str] = cmd
        for macro, path in paths.items():
            if path is None:
                continue
            if isinstance(filled, str):
                filled = fill_in(filled, macro, str(path))
            else:
                filled = [word.replace(f"${{{macro}}}", str(path)) for word in filled]
        if model is None or not any("${MODEL_PATH}" in word for word in words):
            return {"cmd": filled}
        argv = words_of(filled) if isinstance(filled, str) else tuple(filled)
        terms = parse_llama_flags(argv, own=any("${worker}" in word for word in words))
        if terms.context is None:
            terms = replace(terms, context=self._context(model.facts, terms))
        need = self._estimate(model.facts, terms)
        return {"cmd": filled, **self._need(f"models.{bare}", need)}

    def _metadata(
        self, key: str, model: DiscoveredModel | None, wanted: CustomModelConfig
    ) -> dict[str, Any]:
        """What the list of models says beside: its author's words, its adapters, its projector."""
        made: dict[str, Any] = {}
        if key and "metadata" in self.custom.section(key).entries:
            node = self.custom.section(key).entries["metadata"].node
            if isinstance(node, MappingNode):
                made.update({name: entry.node for name, entry in node.entries.items()})
        if wanted.adapters and not wanted.cmd:
            made["adapters"] = list(wanted.adapters)
        projector = self._projector(model, wanted)
        return made | ({"mmproj": str(projector)} if projector else {})

    def _projector(self, model: DiscoveredModel | None, wanted: CustomModelConfig) -> Path | None:
        return self._path(wanted.mmproj) if wanted.mmproj else model.projector if model else None

    def _files(self, wanted: CustomModelConfig) -> tuple[tuple[str, Path], ...]:
        named = {"chat_template_file": wanted.chat_template_file, "mmproj": wanted.mmproj}
        named |= {f"adapters.{name}": path for name, path in wanted.adapters.items()}
        return tuple((key, self._path(path)) for key, path in named.items() if path)

    def _path(self, text: str) -> Path:
        return self.home / Path(text).expanduser()

    def _need(self, key: str, need: int) -> dict[str, str]:
        """The estimate in whole MiB; over the budget none, since there it would be an error."""
        mebibytes = -(-need // 2**20)
        if self.budget and mebibytes * 2**20 > self.budget:
            message = (
                f"needs about {show_size(need)}, more than memory.budget, "
                f"{show_size(self.budget)}: it will run alone, if it runs"
            )
            self.warnings.append(Problem("config.yaml", 0, key, message))
            return {}
        return {"need": f"{mebibytes} MiB"}


def words_of(text: str) -> tuple[str, ...]:
    """A command line's words; none when it cannot be split, which the check of the file tells."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return ()


def _uncommented(cmd: str | list[str]) -> list[str]:
    """The pieces of a command that count; its lines that are comments do not."""
    if not isinstance(cmd, str):
        return cmd
    return [line for line in cmd.split("\n") if not line.lstrip().startswith("#")]


def _bare_name(made: ModelEntry) -> tuple[str, ...]:
    return (made.bare,)


def _found_aliases(made: ModelEntry) -> tuple[str, ...]:
    """Another use of the file gets none of them: its own model comes first and takes them."""
    return made.found.aliases if made.found is not None else ()


def _budget(custom: CustomModels, total_memory: int) -> int:
    entry = custom.tree.entries.get("memory")
    text = BUDGET
    if entry is not None and isinstance(entry.node, MappingNode) and "budget" in entry.node.entries:
        node = entry.node.entries["budget"].node
        text = node.text if isinstance(node, ScalarNode) else text
    try:
        return parse_size(text, total_memory)
    except ValueError:
        # The check of the generated text says so, with its line.
        return 0


def sections_by_name(assembled: AssembledEntries) -> MappingType[str, str]:
    """From the names in config.yaml to the keys in custom_models.yaml, of models in both."""
    return {made.name: made.custom for made in assembled.models if made.custom}

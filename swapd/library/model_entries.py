"""Build the entries of config.yaml from discovered models and custom_models.yaml. Pure.

This module builds the settings of each model; `generate` builds the file with all of them.
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
from swapd.config.macros import fill_in, split_words
from swapd.config.schema import CustomModelConfig, alias_id
from swapd.config.units import parse_size, show_size
from swapd.config.yaml_nodes import MappingNode, ScalarNode
from swapd.domain.model_names import SpellingIndex
from swapd.gguf.llama_flags import LlamaFlags, parse_llama_flags
from swapd.gguf.memory_estimate import MemoryFactors, estimate, fitting_context
from swapd.library.discovery import DiscoveredModel

BUDGET = "80%"
"""Default memory for all workers together, as a share of the machine's."""
KV_DIRECTORY = ".swapd/kv"
"""Folder where built-in workers save their KV caches at exit, relative to the data directory, in
which they run."""
_WORKER_KEYS = (
    "sampler_args",
    "ctx_size",
    "adapters",
    "mmproj",
    "jinja",
    "chat_template_file",
    "chat_template_kwargs",
)
"""Keys of custom_models.yaml that become flags of the built-in worker."""
_CONVERTED_KEYS = frozenset({*_WORKER_KEYS, "base_model", "aliases", "cmd", "metadata"})
"""Keys of custom_models.yaml that are not copied as they are."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model's entry in config.yaml."""

    name: str
    bare: str
    """Name without prefix."""
    entry: dict[str, Any]
    context: int
    """Tokens; 0 when the author's own command decides."""
    found: DiscoveredModel | None
    """Discovered model that it serves; None for a command without one."""
    custom_key: str = ""
    """Key of its section in custom_models.yaml; empty when there is none."""
    files: tuple[tuple[str, Path], ...] = ()
    """Other files that custom_models.yaml names, each with its key."""


@dataclass(frozen=True, slots=True)
class AssembledEntries:
    """All models, sorted by name, and warnings for their author."""

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
    """Build the entry of every model. Relative paths in custom_models.yaml start at `home`.

    `size_of` returns the bytes of a file, 0 if it is missing.
    """
    builder = _EntryBuilder(custom, settings, _budget(custom, total_memory), home, size_of)
    # Discovered models first, then sections without a model, then the aliases that are still free.
    builder.match_sections(tuple(found))
    for bare, model in builder.by_bare.items():
        builder.add(bare, model, builder.keys.get(bare, ""))
    for key in custom.models:
        if key not in builder.keys.values():
            builder.add_unmatched(key)
    builder.add_aliases()
    models = sorted(builder.models.values(), key=lambda model: model.name)
    return AssembledEntries(tuple(models), (*custom.warnings, *builder.warnings))


@dataclass
class _EntryBuilder:
    """Entries and warnings built so far."""

    custom: CustomModels
    settings: SyncSettings
    budget: int
    home: Path
    size_of: Callable[[Path], int]
    models: dict[str, ModelEntry] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)
    by_bare: dict[str, DiscoveredModel] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Keys of sections by the bare names of discovered models."""
    by_alias: dict[str, str] = field(default_factory=dict)
    """Bare names of discovered models by their aliases."""

    def match_sections(self, found: tuple[DiscoveredModel, ...]) -> None:
        """Match each section to a discovered model: by its name, else by one of its aliases."""
        self.by_bare = {model.bare: model for model in found}
        self.by_alias = {alias: model.bare for model in found for alias in model.aliases}
        for key, section in self.custom.models.items():
            if section.base_model:
                if key in self.by_bare:
                    message = f"{key} is itself a model that was found; an alias needs another name"
                    self.warnings.append(self.custom.warn(key, message, "base_model"))
                continue
            if key in self.by_bare:
                self.keys[key] = key
        for key, bare in self.by_alias.items():
            section_or_none = self.custom.models.get(key)
            if section_or_none is None or section_or_none.base_model:
                continue
            if bare in self.keys:
                message = f"means {bare}, which has a section already"
                self.warnings.append(self.custom.warn(key, message))
            else:
                self.keys[bare] = key

    def add(self, bare: str, model: DiscoveredModel | None, key: str) -> None:
        """Add one model: discovered, custom or both."""
        config = self.custom.models[key] if key else CustomModelConfig()
        name = bare if model and model.demo else self.settings.prefix + bare
        context, files = 0, tuple[tuple[str, Path], ...]()
        if config.cmd:
            entry = self._command(bare, key, model, config)
        else:
            assert model is not None
            flags = self._flags(model, config)
            parallel = ("--parallel", str(self.settings.parallel))
            argv = (*parallel, *split_words(flags), *words_of(config.sampler_args))
            llama_flags = parse_llama_flags(argv, builtin=True)
            context = config.ctx_size or self._context(model.factors, llama_flags)
            files = self._files(config)
            entry = self._worker(key, model, context, flags)
            # A context among the author's own flags comes last on the command line, and wins.
            if llama_flags.context is None:
                llama_flags = replace(llama_flags, context=context)
            entry |= self._need(f"models.{name}", self._estimate(model.factors, llama_flags))
        if key:
            for setting, value in sorted(self.custom.section(key).entries.items()):
                if setting not in _CONVERTED_KEYS:
                    entry[setting] = value.node
        metadata = self._metadata(key, model, config)
        if metadata:
            entry["metadata"] = metadata
        if config.aliases:
            entry["aliases"] = [alias_id(alias) for alias in config.aliases]
        self.models[name] = ModelEntry(name, bare, entry, context, model, key, files)

    def add_unmatched(self, key: str) -> None:
        """Add a section without a discovered model: another use of a file, or a command."""
        config = self.custom.models[key]
        base = None
        if config.base_model:
            if key in self.by_bare:
                return
            base = self._base(key, config.base_model)
            if base is None:
                return
        elif key in self.by_alias:
            return
        elif not config.cmd:
            hint = did_you_mean(key, self.by_bare)
            message = f"no model of this name was found, and it has no cmd{hint}"
            self.warnings.append(self.custom.warn(key, message))
            return
        elif any("${MODEL_PATH}" in word for word in _uncommented(config.cmd)):
            hint = did_you_mean(key, self.by_bare)
            message = f"no model of this name was found for the ${{MODEL_PATH}} in its cmd{hint}"
            self.warnings.append(self.custom.warn(key, message))
            return
        self.add(key, base, key)

    def _base(self, key: str, name: str) -> DiscoveredModel | None:
        names = {model.bare: model.aliases for model in self.by_bare.values()}
        found = SpellingIndex(names, self.settings.prefix).find(name)
        if isinstance(found, str):
            return self.by_bare[found]
        if found is not None:
            message = str(found)
        elif name in self.custom.models:
            message = f"{name} is no model that was found; name the one whose file it is"
        else:
            message = f"no model named {name} was found{did_you_mean(name, self.by_bare)}"
        self.warnings.append(self.custom.warn(key, message, "base_model"))
        return None

    def add_aliases(self) -> None:
        """Add every model's other names as aliases, where each of them is still free."""
        taken = {alias for one in self.models.values() for alias in one.entry.get("aliases", ())}
        for names_of in (_bare_name, _found_aliases):
            for model in self.models.values():
                for alias in names_of(model):
                    if alias not in self.models and alias not in taken:
                        taken.add(alias)
                        model.entry["aliases"] = [*model.entry.get("aliases", ()), alias]

    def _worker(self, key: str, model: DiscoveredModel, context: int, flags: str) -> dict[str, Any]:
        """Return the entry of a model served by the built-in worker."""
        trained = model.factors.trained_context
        if trained and context > trained:
            message = f"{context} is more than the {trained} tokens that the model was trained for"
            self.warnings.append(self.custom.warn(key, message, "ctx_size"))
        words = ["--model", str(model.path), "--ctx-size", str(context)]
        words += ["--parallel", str(self.settings.parallel), "--slot-save-path", KV_DIRECTORY]
        sampler = self.custom.models[key].sampler_args.strip() if key else ""
        parts = ("${worker}", shlex.join(words), flags, sampler)
        return {"cmd": " ".join(part for part in parts if part)}

    def _flags(self, model: DiscoveredModel, config: CustomModelConfig) -> str:
        """Return the built-in worker's flags for adapters and chat template."""
        words: list[str] = []
        for path in model.adapters:
            words += ["--lora", str(path)]
        for adapter, file in config.adapters.items():
            words += ["--adapter", f"{adapter}={self._path(file)}"]
        if config.jinja:
            words.append("--jinja")
        if config.chat_template_file:
            words += ["--chat-template-file", str(self._path(config.chat_template_file))]
        if config.chat_template_kwargs:
            words += ["--chat-template-kwargs", json.dumps(config.chat_template_kwargs)]
        return shlex.join(words)

    def _context(self, factors: MemoryFactors, flags: LlamaFlags) -> int:
        """Return the default context of a model, reduced until the estimate fits the budget."""
        default = self.settings.ctx_size
        return fitting_context(
            factors,
            default,
            self.budget,
            lambda n: self._estimate(factors, replace(flags, context=n)),
        )

    def _estimate(self, factors: MemoryFactors, flags: LlamaFlags) -> int:
        paths = [path for path in (*flags.extra_files, flags.draft) if path]
        return estimate(factors, flags) + sum(self.size_of(self.home / path) for path in paths)

    def _command(
        self, bare: str, key: str, model: DiscoveredModel | None, config: CustomModelConfig
    ) -> dict[str, Any]:
        """Return the entry of a model served by the author's own command."""
        cmd = config.cmd
        words = [cmd] if isinstance(cmd, str) else cmd
        for setting in _WORKER_KEYS:
            used = setting == "mmproj" and any("${MMPROJ_PATH}" in word for word in words)
            if getattr(config, setting) and not used:
                message = "has no effect beside cmd; write it there"
                self.warnings.append(self.custom.warn(key, message, setting))
        projector = self._projector(model, config)
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
        flags = parse_llama_flags(argv, builtin=any("${worker}" in word for word in words))
        if flags.context is None:
            flags = replace(flags, context=self._context(model.factors, flags))
        need = self._estimate(model.factors, flags)
        return {"cmd": filled, **self._need(f"models.{bare}", need)}

    def _metadata(
        self, key: str, model: DiscoveredModel | None, config: CustomModelConfig
    ) -> dict[str, Any]:
        """Return the metadata for the list of models: the author's, adapters and projector."""
        metadata: dict[str, Any] = {}
        if key and "metadata" in self.custom.section(key).entries:
            node = self.custom.section(key).entries["metadata"].node
            if isinstance(node, MappingNode):
                metadata.update({name: entry.node for name, entry in node.entries.items()})
        if config.adapters and not config.cmd:
            metadata["adapters"] = list(config.adapters)
        projector = self._projector(model, config)
        return metadata | ({"mmproj": str(projector)} if projector else {})

    def _projector(self, model: DiscoveredModel | None, config: CustomModelConfig) -> Path | None:
        return self._path(config.mmproj) if config.mmproj else model.projector if model else None

    def _files(self, config: CustomModelConfig) -> tuple[tuple[str, Path], ...]:
        files = {"chat_template_file": config.chat_template_file, "mmproj": config.mmproj}
        files |= {f"adapters.{name}": path for name, path in config.adapters.items()}
        return tuple((key, self._path(path)) for key, path in files.items() if path)

    def _path(self, text: str) -> Path:
        return self.home / Path(text).expanduser()

    def _need(self, key: str, need: int) -> dict[str, str]:
        """Return `need` in whole MiB; none over the budget, where it would be an error."""
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
    """Split a command; none when it can't be split, which parsing the file will report."""
    try:
        return tuple(split_words(text))
    except ValueError:
        return ()


def _uncommented(cmd: str | list[str]) -> list[str]:
    """Return the lines of a command without those that are comments."""
    if not isinstance(cmd, str):
        return cmd
    return [line for line in cmd.split("\n") if not line.lstrip().startswith("#")]


def _bare_name(model: ModelEntry) -> tuple[str, ...]:
    return (model.bare,)


def _found_aliases(model: ModelEntry) -> tuple[str, ...]:
    """Return the aliases of its file; the file's own model is added first and takes them."""
    return model.found.aliases if model.found is not None else ()


def _budget(custom: CustomModels, total_memory: int) -> int:
    entry = custom.tree.entries.get("memory")
    text = BUDGET
    if entry is not None and isinstance(entry.node, MappingNode) and "budget" in entry.node.entries:
        node = entry.node.entries["budget"].node
        text = node.text if isinstance(node, ScalarNode) else text
    try:
        return parse_size(text, total_memory)
    except ValueError:
        # Parsing the generated text will report it, with its line.
        return 0


def sections_by_name(assembled: AssembledEntries) -> MappingType[str, str]:
    """Return the keys in custom_models.yaml by names in config.yaml, of models in both."""
    return {model.name: model.custom_key for model in assembled.models if model.custom_key}

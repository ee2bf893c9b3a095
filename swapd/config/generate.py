"""config.yaml from what was found and what custom_models.yaml says. Pure, and deterministic."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from typing import Any

from swapd.config.commands import fill_in
from swapd.config.custom import Custom
from swapd.config.discover import Found
from swapd.config.env import SyncSettings
from swapd.config.need import default_context, estimate
from swapd.config.problems import Problem, did_you_mean
from swapd.config.schema import CustomModel
from swapd.config.tree import Mapping, Scalar
from swapd.config.units import parse_size, show_size
from swapd.config.write import write_yaml

MARK = "# Written by swapd sync"
HEADER = f"{MARK}; edit custom_models.yaml instead: what is changed here gets lost.\n"
BUDGET = "80%"
"""What all workers together may take of a machine nobody said anything about."""
_OURS = frozenset({"sampler_args", "ctx_size", "aliases", "cmd"})
"""Keys of custom_models.yaml that do not go over as they are."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The text of config.yaml, and what its author should know."""

    text: str
    names: MappingType[str, str]
    """From the names in the file to the names in custom_models.yaml, of models that are in both."""
    warnings: tuple[Problem, ...]


def generate(
    found: Iterable[Found], custom: Custom, settings: SyncSettings, total_memory: int
) -> Generated:
    """The configuration of these models. The same input gives the same text."""
    work = _Work(custom, settings, _budget(custom, total_memory))
    by_bare = {model.bare: model for model in found}
    for bare, model in by_bare.items():
        name = bare if model.demo else settings.prefix + bare
        work.entry(name, bare, model, custom.models.get(bare))
    for bare, wanted in custom.models.items():
        if bare in by_bare:
            continue
        if wanted.cmd:
            work.entry(settings.prefix + bare, bare, None, wanted)
        else:
            hint = did_you_mean(bare, by_bare)
            work.warnings.append(
                custom.warn(bare, f"no model of this name was found, and it has no cmd{hint}")
            )
    work.add_aliases()
    config = {**_top(custom, settings), "models": dict(sorted(work.models.items()))}
    return Generated(HEADER + write_yaml(config), work.names, (*custom.warnings, *work.warnings))


@dataclass
class _Work:
    custom: Custom
    settings: SyncSettings
    budget: int
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)
    bare: dict[str, str] = field(default_factory=dict)

    def entry(self, name: str, bare: str, model: Found | None, wanted: CustomModel | None) -> None:
        """Add one model: found, custom or both."""
        made: dict[str, Any] = {}
        if wanted is not None:
            self.names[name] = bare
        self.bare[name] = bare
        if wanted is None or not wanted.cmd:
            assert model is not None
            made = self._worker(name, model, wanted)
        else:
            made = self._command(bare, model, wanted)
        if wanted is not None:
            for key, entry in sorted(self.custom.section(bare).entries.items()):
                if key not in _OURS:
                    made[key] = entry.node
            if wanted.aliases:
                made["aliases"] = list(wanted.aliases)
        self.models[name] = made

    def add_aliases(self) -> None:
        """Let every model answer to its name without prefix where that means only one."""
        taken = {alias for made in self.models.values() for alias in made.get("aliases", ())}
        for name, made in self.models.items():
            bare = self.bare[name]
            if bare not in self.models and bare not in taken:
                made["aliases"] = [*made.get("aliases", ()), bare]

    def _worker(self, name: str, model: Found, wanted: CustomModel | None) -> dict[str, Any]:
        """A model served by our own worker."""
        wanted = wanted or CustomModel()
        context = wanted.ctx_size or default_context(model.facts, self.settings.ctx_size)
        trained = model.facts.trained_context
        if trained and context > trained:
            message = f"{context} is more than the {trained} tokens that the model was trained for"
            self.warnings.append(self.custom.warn(model.bare, message, "ctx_size"))
        cmd = (
            f"${{worker}} --model {shlex.quote(str(model.path))} --ctx-size {context}"
            f" --parallel {self.settings.parallel}"
        )
        if wanted.sampler_args.strip():
            cmd += f" {wanted.sampler_args.strip()}"
        return {"cmd": cmd, **self._need(f"models.{name}", estimate(model.facts, context))}

    def _command(self, bare: str, model: Found | None, wanted: CustomModel) -> dict[str, Any]:
        """A model served by the command that the author gives."""
        for key, value in (("sampler_args", wanted.sampler_args), ("ctx_size", wanted.ctx_size)):
            if value:
                message = "has no effect beside cmd; write it there"
                self.warnings.append(self.custom.warn(bare, message, key))
        cmd = wanted.cmd
        words = [cmd] if isinstance(cmd, str) else cmd
        if model is None or not any("${MODEL_PATH}" in word for word in words):
            return {"cmd": cmd}
        path = str(model.path)
        if isinstance(cmd, str):
            filled: str | list[str] = fill_in(cmd, "MODEL_PATH", path)
        else:
            filled = [word.replace("${MODEL_PATH}", path) for word in cmd]
        context = default_context(model.facts, self.settings.ctx_size)
        return {"cmd": filled, **self._need(f"models.{bare}", estimate(model.facts, context))}

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


def _top(custom: Custom, settings: SyncSettings) -> dict[str, Any]:
    """The keys above the models: the environment's, and over them the author's."""
    memory: dict[str, Any] = {
        "budget": BUDGET,
        "threshold": _plain(settings.threshold),
        "interval": _plain(settings.interval),
    }
    top: dict[str, Any] = {"ttl": _plain(settings.model_ttl), "memory": memory}
    for key, entry in custom.tree.entries.items():
        if key == "models" or key.startswith("x-"):
            continue
        if key == "memory" and isinstance(entry.node, Mapping):
            memory.update({name: inner.node for name, inner in entry.node.entries.items()})
        else:
            top[key] = entry.node
    if "globalTTL" in top and "ttl" not in custom.tree.entries:
        del top["ttl"]
    return dict(sorted(top.items()))


def _budget(custom: Custom, total_memory: int) -> int:
    entry = custom.tree.entries.get("memory")
    text = BUDGET
    if entry is not None and isinstance(entry.node, Mapping) and "budget" in entry.node.entries:
        node = entry.node.entries["budget"].node
        text = node.text if isinstance(node, Scalar) else text
    try:
        return parse_size(text, total_memory)
    except ValueError:
        # The check of the generated text says so, with its line.
        return 0


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number

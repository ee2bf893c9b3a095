"""custom_models.yaml: overrides of the models found. Pure except for `read_custom_models`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import MappingProxyType

from swapd.config.decode import Diagnostics, decode, use_current_names
from swapd.config.errors import ConfigError, Path, Problem
from swapd.config.schema import CustomModelConfig, ServerConfig
from swapd.config.yaml_nodes import MappingEntry, MappingNode, ScalarNode, line_of, parse_tree

FILE = "custom_models.yaml"
ADAPTER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""Form of an adapter's name: `MODEL:ADAPTER` for clients, `NAME=PATH` in the worker's flags."""


@dataclass(frozen=True, slots=True)
class CustomModels:
    """The checked file: its models by their names without prefix, and the whole tree."""

    tree: MappingNode
    models: MappingType[str, CustomModelConfig]
    warnings: tuple[Problem, ...] = ()

    def section(self, name: str) -> MappingNode:
        """Return a model's section of the file."""
        models = self.tree.entries["models"].node
        assert isinstance(models, MappingNode)
        section = models.entries[name].node
        assert isinstance(section, MappingNode)
        return section

    def warn(self, name: str, message: str, key: str = "") -> Problem:
        """Return a warning at the line of a model or of one of its keys."""
        steps = ("models", name, *(key.split(".", 1) if key else ()))
        return Problem(FILE, line_of(self.tree, steps), ".".join(steps), message)


def read_custom_models(path: FilePath, env: MappingType[str, str]) -> CustomModels:
    """Read and check the file; a missing file is an empty one. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(FILE, 0, "", message)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(FILE, 0, "", "is not text in UTF-8")]) from error
    return parse_custom_models(text, env)


def parse_custom_models(text: str, env: MappingType[str, str]) -> CustomModels:
    """Parse and check the text. Raises ConfigError with all problems of single values.

    Problems of the whole configuration (an alias that is another model's name) are found when
    the generated text is checked.
    """
    tree, problems = parse_tree(text, FILE)
    report = Diagnostics(FILE, tree, problems)
    anchors = frozenset(key for key in tree.entries if key.startswith("x-"))
    decode(ServerConfig, tree, (), report, env, beside=anchors | {"models"})
    models = _models(tree, report, env)
    if report.problems:
        raise ConfigError(dict.fromkeys(sorted(report.problems, key=lambda p: p.line)))
    # The tree is copied into config.yaml, which is written with current names only.
    return CustomModels(_current(tree), models, tuple(dict.fromkeys(report.warnings)))


def _current(tree: MappingNode) -> MappingNode:
    """Return the tree with current names of keys, at the top and in the models' sections."""
    top = dict(use_current_names(ServerConfig, tree).entries)
    models = top.get("models")
    if models is not None and isinstance(models.node, MappingNode):
        sections = {
            name: MappingEntry(entry.line, use_current_names(CustomModelConfig, entry.node))
            for name, entry in models.node.entries.items()
            if isinstance(entry.node, MappingNode)
        }
        node = MappingNode(models.node.line, MappingProxyType(sections))
        top["models"] = MappingEntry(models.line, node)
    return MappingNode(tree.line, MappingProxyType(top))


def _models(
    tree: MappingNode, report: Diagnostics, env: MappingType[str, str]
) -> dict[str, CustomModelConfig]:
    entry = tree.entries.get("models")
    if entry is None or (isinstance(entry.node, ScalarNode) and entry.node.value is None):
        return {}
    if not isinstance(entry.node, MappingNode):
        report.problem(("models",), "must be a section with a model's name as each key")
        return {}
    found = {}
    for name, model_entry in entry.node.entries.items():
        path = ("models", name)
        if not isinstance(model_entry.node, MappingNode):
            report.problem(path, "must be a section of settings")
            continue
        found[name] = decode(CustomModelConfig, model_entry.node, path, report, env)
        _check(found[name], path, report)
    return found


def _check(model: CustomModelConfig, path: Path, report: Diagnostics) -> None:
    """Check the constraints that the types of the keys cannot express."""
    try:
        shlex.split(model.sampler_args)
    except ValueError:
        report.problem((*path, "sampler_args"), "cannot be split: a quote is never closed")
    if re.search(r"[\r\n]", model.sampler_args.strip()):
        report.problem((*path, "sampler_args"), "must be one line")
    for name in model.adapters:
        if not ADAPTER_NAME.fullmatch(name):
            report.problem((*path, "adapters", name), "an adapter's name is of A-Z a-z 0-9 _ . -")
    files = {"chat_template_file": model.chat_template_file, "mmproj": model.mmproj}
    files |= {f"adapters.{name}": file for name, file in model.adapters.items()}
    for key, file in files.items():
        if file and (not file.isprintable() or "${" in file):
            message = "is a path that a command line in config.yaml cannot hold"
            report.problem((*path, *key.split(".", 1)), message)

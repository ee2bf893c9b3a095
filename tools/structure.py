"""Figures on the structure and the language of the code: `python -m tools.structure`.

The same figures for every tree of Python files, so that two revisions can be compared:
`python -m tools.structure ROOT`. Files are parsed, never run.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PRODUCT = ("swapd", "workers")
SMALL = 60
"""Lines below which a module with one importer belongs into that importer."""

OPENINGS = frozenset(
    {
        "what",
        "who",
        "whom",
        "whose",
        "whoever",
        "whether",
        "how",
        "when",
        "where",
        "which",
        "that",
        "it",
        "one",
        "such",
    }
)
"""First words that a docstring should not have: it begins with a verb or a noun (PEP 257)."""

WORDS = re.compile(
    r"\b(?:told|nobody|somebody|whoever|whom|heed(?:s|ed)?|lest|dawdl\w+|of ours)\b", re.IGNORECASE
)
"""Words that a docstring should not hold, because a plainer one says the same."""


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring: of a module, class, function, or of an attribute (PEP 258)."""

    module: str
    line: int
    text: str

    @property
    def first_word(self) -> str:
        """The first word in lower case; empty when it begins with anything else."""
        found = re.match(r"\W*([A-Za-z]+)", self.text)
        return found[1].lower() if found else ""


class Module:
    """A parsed file, with its dotted name."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        self.name = name
        self.path = path
        self.text = text
        self.lines = text.count("\n")

    @classmethod
    def of_file(cls, root: Path, path: Path) -> Module:
        """Read a file below the checkout's root."""
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        return cls(name, path, path.read_text(encoding="utf-8"))

    @classmethod
    def of_text(cls, name: str, text: str) -> Module:
        """Make a module of a text."""
        return cls(name, Path(f"{name}.py"), text)

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    def docstrings(self) -> Iterator[Docstring]:
        """Yield every docstring, those of attributes too."""
        for node in ast.walk(self.tree):
            body = getattr(node, "body", None)
            if not isinstance(body, list):
                continue
            documented = isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            )
            for before, statement in zip([None, *body], body, strict=False):
                if not isinstance(statement, ast.Expr):
                    continue
                value = statement.value
                if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                    continue
                if isinstance(before, ast.Assign | ast.AnnAssign) or (
                    before is None and documented
                ):
                    yield Docstring(self.name, statement.lineno, value.value)

    def imports(self, names: Iterable[str]) -> set[str]:
        """Return the modules out of `names` that this one imports, anywhere in the file."""
        known, found = set(names), set[str]()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & known
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found |= {whole if whole in known else node.module} & known
        return found - {self.name}

    def top_level_imports(self) -> set[str]:
        """Return the first parts of all imported names, such as `asyncio` or `swapd`."""
        found = set[str]()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.add(node.module.split(".")[0])
        return found

    def classes(self) -> Iterator[ast.ClassDef]:
        """Yield the classes of the file's top level."""
        return (node for node in self.tree.body if isinstance(node, ast.ClassDef))


def read(root: Path, folders: Iterable[str] = PRODUCT) -> list[Module]:
    """Read the files below some folders of a checkout."""
    return [
        Module.of_file(root, path)
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]


def graph(modules: Iterable[Module]) -> dict[str, set[str]]:
    """Return for each module the modules that it imports, lazily or not."""
    modules = list(modules)
    names = [module.name for module in modules]
    return {module.name: module.imports(names) for module in modules}


def packages(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph of packages of a graph of modules; a top-level module is its own package."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, targets in edges.items():
        source = _package(module, edges)
        found[source] |= {_package(target, edges) for target in targets} - {source}
    return dict(found)


def _package(module: str, edges: dict[str, set[str]]) -> str:
    parts = module.split(".")
    is_package = any(other.startswith(f"{module}.") for other in edges)
    return module if len(parts) == 1 or is_package else ".".join(parts[: max(2, len(parts) - 1)])


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []
    for start, first in edges.items():
        if start in index:
            continue
        work = [(start, iter(sorted(first)))]
        index[start] = low[start] = len(index)
        stack.append(start)
        while work:
            node, targets = work[-1]
            target = next(targets, None)
            if target is None:
                # All of the node's targets are seen: it closes a group, or belongs to an older one.
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    group = stack[stack.index(node) :]
                    del stack[-len(group) :]
                    if len(group) > 1:
                        found.append(sorted(group))
            elif target not in index:
                index[target] = low[target] = len(index)
                stack.append(target)
                work.append((target, iter(sorted(edges.get(target, ())))))
            elif target in stack:
                low[node] = min(low[node], index[target])
    return found


def longest_inheritance(modules: Iterable[Module]) -> int:
    """Return the longest chain of the modules' own classes, each derived from the next.

    One class alone is a chain of 1.
    """
    bases = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for module in modules
        for node in module.classes()
    }

    def length(name: str) -> int:
        return 1 + max((length(base) for base in bases[name] if base in bases), default=0)

    return max(map(length, bases), default=0)


def homonyms(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Return the public class names that more than one module defines, with these modules."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in module.classes():
            if not node.name.startswith("_"):
                places[node.name].append(module.name)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def lone_small_modules(modules: Iterable[Module], edges: dict[str, set[str]]) -> list[str]:
    """Return the modules of less than `SMALL` lines that exactly one other module imports."""
    importers: dict[str, int] = defaultdict(int)
    for targets in edges.values():
        for target in targets:
            importers[target] += 1
    return [
        module.name
        for module in modules
        if module.lines < SMALL
        and importers[module.name] == 1
        and not module.path.name.startswith("__")
    ]


def poor_openings(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """Return the docstrings that begin with one of `OPENINGS`."""
    return [docstring for docstring in docstrings if docstring.first_word in OPENINGS]


def poor_words(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """Return the docstrings that hold one of `WORDS`."""
    return [docstring for docstring in docstrings if WORDS.search(docstring.text)]


def main(argv: list[str]) -> int:
    """Print the table; with `-v`, also the places behind each figure."""
    verbose = "-v" in argv
    roots = [Path(word) for word in argv if word != "-v"]
    root = roots[0] if roots else Path(__file__).resolve().parents[1]
    modules = read(root)
    edges = graph(modules)
    lengths = sorted(m.lines for m in modules if m.path.name != "__init__.py")
    folders: dict[Path, int] = defaultdict(int)
    for module in modules:
        if module.path.name != "__init__.py":
            folders[module.path.parent] += 1
    largest = max(folders, key=folders.__getitem__)
    docstrings = [d for module in modules for d in module.docstrings()]
    openings, words = poor_openings(docstrings), poor_words(docstrings)
    scheduler = [m for m in modules if ".scheduler" in m.name or ".core" in m.name]
    lone, twice = lone_small_modules(modules, edges), homonyms(modules)
    in_files, in_packages = cycles(edges), cycles(packages(edges))
    rows: list[tuple[str, object, Iterable[object]]] = [
        ("files", len(lengths), ()),
        ("lines", sum(lengths), ()),
        (
            "file length, median / p90 / max",
            f"{statistics.median(lengths):.0f} / {lengths[len(lengths) * 9 // 10]} / {lengths[-1]}",
            (),
        ),
        (
            "files in the largest folder",
            f"{max(folders.values())} ({largest.relative_to(root)})",
            (),
        ),
        (f"modules below {SMALL} lines with one importer", len(lone), lone),
        ("class names with two meanings", len(twice), (f"{n}: {w}" for n, w in twice.items())),
        ("import cycles between files", len(in_files), in_files),
        ("import cycles between packages", len(in_packages), in_packages),
        ("longest inheritance chain in the scheduler", longest_inheritance(scheduler), ()),
        ("docstrings", len(docstrings), ()),
        (
            "  with a poor opening",
            f"{len(openings)} ({100 * len(openings) / len(docstrings):.1f} %)",
            (f"{d.module}:{d.line}: {d.text.splitlines()[0]}" for d in openings),
        ),
        (
            "  with a poor word",
            f"{len(words)} ({100 * len(words) / len(docstrings):.1f} %)",
            (f"{d.module}:{d.line}: {d.text.splitlines()[0]}" for d in words),
        ),
    ]
    for label, figure, places in rows:
        print(f"{label:<48}{figure}")
        for place in places if verbose else ():
            print(f"    {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

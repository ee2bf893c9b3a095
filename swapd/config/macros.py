"""Command lines and the macros in them. Pure.

A command is split as a shell would (quotes, backslashes), without a shell. Macros are put in after
the split, so a path with spaces in a macro stays one word, with the shell's exception: a macro
that is a whole unquoted word is split into words, like `$x` as against `"$x"`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from swapd.config.decode import env_problem
from swapd.config.errors import nearest

MACRO = re.compile(r"\$\{([^}]*)\}")
RESERVED = frozenset({"PORT", "PID", "MODEL_ID", "MODEL_PATH", "MMPROJ_PATH", "worker"})
"""Predefined names, not allowed for macros."""

_QUOTING = re.compile(r"""[\\'"]""")
_WORD = re.compile(r"[^ \t\r\n]+")
_ALONE = "\0"
_TOKENS = MappingProxyType(
    {
        "": re.compile(r"\\.|['\"]|\$\{[^}]*\}", re.DOTALL),
        '"': re.compile(r"\\.|\"|\$\{[^}]*\}", re.DOTALL),
        "'": re.compile(r"'|\$\{[^}]*\}"),
    }
)
MAX_MACROS = 10_000
"""Expansions for one model; far above any use, far below the growth of nested macros."""


@dataclass(frozen=True, slots=True)
class Macro:
    """A macro's text, for use inside other text, and its value, for use as a whole value."""

    text: str
    value: object


@dataclass(frozen=True, slots=True)
class MacroScope:
    """Values of the macros of one model."""

    model: str
    macros: Mapping[str, Macro]
    env: Mapping[str, str]
    worker: tuple[str, ...]


class MacroError(Exception):
    """A macro that cannot be expanded; the message is a sentence."""


def split_command(text: str) -> list[str]:
    """Split a command line into words; ValueError when a quote is never closed.

    Lines whose first character is `#` are comments; a backslash at the end of a line continues
    it, as does the line's end itself. A macro that is a whole unquoted word is marked.
    """
    joined = _without_comments(text)
    if "\0" in joined:
        raise ValueError("holds a NUL character")
    marked, last = [], 0
    for start, end, quote in _macros(joined):
        before = joined[start - 1 : start].isspace() or start == 0
        after = joined[end : end + 1].isspace() or end == len(joined)
        if not quote and before and after:
            marked += [joined[last:start], _ALONE]
            last = start
    command = "".join((*marked, joined[last:]))
    try:
        return split_words(command)
    except ValueError as error:
        wrong = "a quote is never closed" if "quotation" in str(error) else "it ends in a backslash"
        raise ValueError(wrong) from error


def split_words(text: str) -> list[str]:
    """Split a text into words as a POSIX shell does. Raises ValueError.

    Without quotes this takes a tenth of `shlex.split`'s time; a configuration may have hundreds of
    commands.
    """
    return shlex.split(text) if _QUOTING.search(text) else _WORD.findall(text)


def fill_in(text: str, name: str, value: str) -> str:
    """Replace `${name}` in a command line by a value that stays one word, quoted as needed.

    Comment lines are left out.
    """
    text = _without_comments(text)
    parts, last = [], 0
    for start, end, quote in _macros(text):
        if text[start:end] != f"${{{name}}}":
            continue
        if quote == "'":
            shown = value.replace("'", "'\"'\"'")
        elif quote == '"':
            shown = re.sub(r'([\\"])', r"\\\1", value)
        else:
            shown = shlex.quote(value)
        parts += [text[last:start], shown]
        last = end
    return "".join((*parts, text[last:]))


class MacroExpander:
    """Expander of a model's macros; raises MacroError with a sentence on failure."""

    def __init__(self, scope: MacroScope) -> None:
        self._scope = scope
        self._left = MAX_MACROS

    def words(
        self, command: str | list[str], report: Callable[[str], None], keep: frozenset[str]
    ) -> tuple[str, ...]:
        """Return the words of a command; macros named in `keep` stay unexpanded.

        In a list every item is one word, and only `${worker}` is several words. Each macro that
        cannot be expanded is passed to `report`; a line that cannot be split raises ValueError.
        """
        if isinstance(command, str):
            words = split_command(command)
        else:
            words = [_ALONE + word if word == "${worker}" else word for word in command]
        return tuple(w for word in words for w in self._words_or_report(word, keep, report))

    def text(self, text: str, keep: frozenset[str] = frozenset()) -> str:
        """Return the text with its macros expanded, nested ones too."""
        return self._text(text, keep, ())

    def value(self, value: object, keep: frozenset[str] = frozenset()) -> object:
        """Expand macros at any depth of a value; a macro that is a whole value keeps its type."""
        if isinstance(value, dict):
            return {key: self.value(item, keep) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, keep) for item in value]
        if not isinstance(value, str):
            return value
        whole = MACRO.fullmatch(value)
        if whole is not None and whole[1] in self._scope.macros:
            found = self._scope.macros[whole[1]].value
            return self._text(found, keep, (whole[1],)) if isinstance(found, str) else found
        return self._text(value, keep, ())

    def _text(self, text: str, keep: frozenset[str], inside: tuple[str, ...]) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name in keep:
                return match[0]
            if name == "worker":
                raise MacroError("${worker} stands for several words, so it must stand alone")
            found, final = self._lookup(name, inside)
            return found if final else self._text(found, keep, (*inside, name))

        return MACRO.sub(value, text)

    def _words_or_report(
        self, word: str, keep: frozenset[str], report: Callable[[str], None]
    ) -> tuple[str, ...]:
        try:
            return self._word(word, keep, ())
        except MacroError as error:
            report(str(error))
            return ()

    def _word(self, word: str, keep: frozenset[str], inside: tuple[str, ...]) -> tuple[str, ...]:
        if not word.startswith(_ALONE):
            return (self._text(word, keep, inside),)
        name = word[3:-1]
        if name == "worker":
            return self._scope.worker
        if name in keep or name == "MODEL_ID":
            return (self._text(word[1:], keep, inside),)
        found, final = self._lookup(name, inside)
        try:
            words = split_command(found)
        except ValueError as error:
            raise MacroError(f"macro {name}: {error}") from error
        if final:
            return tuple(inner.removeprefix(_ALONE) for inner in words)
        return tuple(w for inner in words for w in self._word(inner, keep, (*inside, name)))

    def _lookup(self, name: str, inside: tuple[str, ...]) -> tuple[str, bool]:
        """Return the macro's text, and True if it is data that is not expanded further."""
        self._left -= 1
        if self._left < 0:
            raise MacroError("its macros stand for too many others")
        if name in inside:
            raise MacroError(f"macro {name} refers to itself")
        scope = self._scope
        if name == "MODEL_ID":
            return scope.model, True
        if name.startswith("env."):
            variable = name.removeprefix("env.")
            if variable not in scope.env:
                raise MacroError(env_problem(variable, scope.env))
            return scope.env[variable], True
        if name in scope.macros:
            return scope.macros[name].text, False
        if name in RESERVED:
            raise MacroError(f"${{{name}}} has no meaning here")
        if name in scope.env:
            raise MacroError(f"undefined macro ${{{name}}}; did you mean ${{env.{name}}}?")
        near = nearest(name, {*scope.macros, *RESERVED})
        hint = f"; did you mean ${{{near}}}?" if near else ""
        raise MacroError(f"undefined macro ${{{name}}}{hint}")


def _without_comments(text: str) -> str:
    """Return the text without its comment lines, with continued lines joined."""
    lines = (line for line in text.split("\n") if not line.lstrip().startswith("#"))
    return re.sub(r"\\[ \t]*(\n|$)", " ", "\n".join(lines))


def _macros(text: str) -> list[tuple[int, int, str]]:
    """Return start and end of each macro and the quote around it (empty for none)."""
    found, position, quote = [], 0, ""
    while (match := _TOKENS[quote].search(text, position)) is not None:
        token = match[0]
        position = match.end()
        if token.startswith("${"):
            found.append((match.start(), match.end(), quote))
        elif token in "'\"":
            quote = "" if quote else token
    return found

"""Splitting of command lines and expansion of macros."""

from __future__ import annotations

import shlex
from types import MappingProxyType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swapd.config.macros import Macro, MacroExpander, MacroScope, fill_in, split_command

PORT = frozenset({"PORT"})
MACROS = {
    "flags": "--a 1 'two words'",
    "path": "/models/my model.gguf",
    "quoted": "'/models/my model.gguf'",
    "outer": "${flags} --in ${flags}x ${PORT}",
    "empty": "",
}


def words(command: str | list[str]) -> tuple[str, ...]:
    macros = {name: Macro(text, text) for name, text in MACROS.items()}
    scope = MacroScope("a/model", macros, {"ARGS": "-x -y", "TRICK": "${flags}"}, ("py", "-m", "w"))
    errors: list[str] = []
    found = MacroExpander(scope).words(command, errors.append, PORT)
    assert errors == []
    return found


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("a  b\n c", ("a", "b", "c")),
        ("a \\\n b \\  \n c", ("a", "b", "c")),
        ("# it's\na\n  # no ${macro}\nb #c", ("a", "b", "#c")),
        ("""a 'b c' "d 'e" f\\ g ''""", ("a", "b c", "d 'e", "f g", "")),
        ("a $HOME `ls` *", ("a", "$HOME", "`ls`", "*")),
        ("${flags}", ("--a", "1", "two words")),
        ("'${flags}'", ("--a 1 'two words'",)),
        ("'in ${flags} out'", ("in --a 1 'two words' out",)),
        ("${path}", ("/models/my", "model.gguf")),
        ('"${path}"', ("/models/my model.gguf",)),
        ("--m=${path}", ("--m=/models/my model.gguf",)),
        ("${quoted}", ("/models/my model.gguf",)),
        ("\\${flags}", ("--a 1 'two words'",)),
        ("${outer}", ("--a", "1", "two words", "--in", "--a 1 'two words'x", "${PORT}")),
        ("a ${empty} b", ("a", "b")),
        ("a '${empty}' b", ("a", "", "b")),
        ("${env.ARGS}", ("-x", "-y")),
        ("'${env.ARGS}'", ("-x -y",)),
        ("${env.TRICK} x${env.TRICK}", ("${flags}", "x${flags}")),
        ("${worker} ${MODEL_ID} ${PORT}:${PORT}", ("py", "-m", "w", "a/model", "${PORT}:${PORT}")),
        (["${worker}", "${path}", "a b"], ("py", "-m", "w", "/models/my model.gguf", "a b")),
    ],
)
def test_a_command_is_split_into_words(command: str | list[str], expected: tuple[str, ...]) -> None:
    assert words(command) == expected


_WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n${}"))


@settings(deadline=None)
@given(st.lists(_WORDS))
@example(["a'b", '"', "\\", " ", "#", "\u2028", "a\r"])
def test_shell_quoting_is_reversed(given: list[str]) -> None:
    assert split_command("x " + shlex.join(given)) == ["x", *given]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])).filter(bool))
@example('it\'s "a" \\ $x')
def test_a_substituted_path_is_one_word_in_any_quotes(path: str) -> None:
    line = "# it's ${P}\na ${P} \"${P}\" '${P}' --m=${P} ${PORT}"
    filled = split_command(fill_in(line, "P", path))
    assert [w.removeprefix("\0") for w in filled] == [
        "a", path, path, path, f"--m={path}", "${PORT}",
    ]  # fmt: skip


def test_a_value_that_is_only_a_macro_has_the_type_of_the_macro() -> None:
    macros = MappingProxyType({"n": Macro("1.10", 1.1), "t": Macro("${n}!", "${n}!")})
    expander = MacroExpander(MacroScope("m", macros, {}, ()))
    assert expander.value({"a": ["${n}", "v${n}", "${t}", 3, None]}) == {
        "a": [1.1, "v1.10", "1.10!", 3, None]
    }

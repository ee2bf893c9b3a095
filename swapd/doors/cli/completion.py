"""Names with colons at a bash prompt.

bash takes a colon for the end of a word: of `ls/qwen:q4` it hands over `ls/qwen`, `:` and `q4`, and
puts what it is answered into the place of the last of them. So the words are joined before they are
looked at, and what stands before the last colon is taken off every answer.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, MutableMapping
from contextlib import redirect_stdout


def is_bash_asking(program: str, environ: MutableMapping[str, str]) -> bool:
    """Whether this process is to complete a line, for bash."""
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    return environ.get(variable) == "complete_bash"


def for_bash(complete: Callable[[], None], environ: MutableMapping[str, str] = os.environ) -> None:
    """Let `complete` print what the line can go on with, and mend that for names with colons."""
    before = join_words(environ)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            complete()
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(before):
                sys.stdout.write(line[len(before) :] + "\n")


def join_words(environ: MutableMapping[str, str]) -> str:
    """Join the words around colons; returns what bash keeps of the word that is completed."""
    words = environ.get("COMP_WORDS", "").split("\n")
    at = int(environ.get("COMP_CWORD") or 0)
    joined: list[str] = []
    current = 0
    for i, word in enumerate(words):
        follows = i > 1 and (word == ":" or words[i - 1] == ":") and len(joined) > 1
        if follows:
            joined[-1] += word
        else:
            joined.append(word)
        if i == at:
            current = len(joined) - 1
    if at >= len(words) or ":" not in joined[current]:
        return ""
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(joined), str(current)
    kept = joined[current]
    return kept[: kept.rindex(":") + 1] if at < len(words) else ""

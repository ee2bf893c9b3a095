"""A wrong word on the command line, as one sentence."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

import typer

from swapd.doors.cli.say import command

WRONG = 2
"""Exit status for wrong words and options."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What the library under typer raises; which library that is differs by version."""
_PLAINLY = MappingProxyType(
    {
        r"Invalid value for (.*): .* is not a valid int.*": r"\1 must be a whole number",
        r"Invalid value for (.*): .* is not a valid float.*": r"\1 must be a number",
        r"Invalid value for (.*): .* is not in the range x>=(.*)\.": r"\1 must be \2 or more",
        r"Invalid value for (.*): .* is not in the range (.*)<=x<=(.*)\.":
            r"\1 must be from \2 to \3",
        r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"there is nothing to do with \1",
    }
)  # fmt: skip


def sentence(error: Any) -> str:
    """What is wrong, with the nearest right thing and where to read on."""
    said = str(error.format_message()).strip()
    for pattern, plainly in _PLAINLY.items():
        said = re.sub(pattern, plainly, said)
    said = re.sub(r"\.? Did you mean (.*)\?$", r"; did you mean \1?", said).removesuffix(".")
    said = re.sub(r" \(Possible options?: (.*)\)$", r"; did you mean \1?", said)
    if re.match("[A-Z][a-z]", said):
        said = said[0].lower() + said[1:]
    where = error.ctx.command_path.partition(" ")[2] if error.ctx is not None else ""
    told = " ".join(part for part in (command(), where, "--help") if part)
    return f"{said}{'' if said.endswith('?') else ';'} {told} tells more"


def is_help(error: Any) -> bool:
    """Whether it is no fault, but a group of commands called without one."""
    return "\n" in str(error.format_message())

"""Jinja's sandbox for chat templates, with limits on memory and time; also a process for one job.

Beside Jinja's own names a template may use those of Hugging Face's `apply_chat_template`:
`raise_exception`, `strftime_now` (a variable of each rendering), a `tojson` that does not escape
characters, loop controls, and `generation`, which marks text of the model.

Many small steps can be interrupted. A single step can't, and may take any amount of memory: so the
bounded environment checks numbers and lengths before the step, and stops. See `template`.

`main` is a process for one rendering: the job on standard input, the result on standard output. The
kernel enforces its limits for any template.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, pass_eval_context
from jinja2 import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.nodes import EvalContext, Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 16_000_000
"""Characters of a prompt, and of each value in it."""
LONGEST_SOURCE = 100_000
"""Characters of a template; the longest known ones have some ten thousand."""
MAX_ARGUMENT = 100_000
"""Number in an argument of a function; also bits of a product or power."""
MAX_FILTER_ARGUMENT = 100
"""Number in an argument of a filter."""
MAX_INDENTED = 200_000
"""Characters of a value that is written as indented JSON."""
_WIDE = re.compile(r"\d{4}|\*")
_GROWING = frozenset({"translate", "expandtabs", "fromkeys", "to_bytes"})
"""Methods whose result may be far larger than their arguments."""
_RARE = ("center", "wordwrap", "urlize", "xmlattr", "batch", "slice", "pprint")
"""Filters of the same kind, which chat templates hardly use."""
FAULTS = (
    JinjaError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError,
    RecursionError, MemoryError, SyntaxError,
)  # fmt: skip
"""Exceptions that a faulty template may raise."""


class TemplateLimitError(Exception):
    """A step that might take too much memory or time."""


def clock(at: float) -> Callable[[str], str]:
    """Return `strftime_now` for the time `at`."""
    return lambda pattern: datetime.fromtimestamp(at).strftime(pattern[:100])


def compiled(source: str, *, bounded: bool) -> Template:
    """Compile a template. Raises one of FAULTS.

    `bounded`: its rendering raises TemplateLimitError before a disproportionate step.
    """
    if len(source) > LONGEST_SOURCE:
        raise ValueError(f"it has more than {LONGEST_SOURCE} characters")
    template = (_Bounded if bounded else _Environment)().from_string(source)
    if bounded:
        names = template.root_render_func.__globals__
        names["str_join"] = names["markup_join"] = _str_join
    return template


def _reject(*_: Any, **__: Any) -> None:
    raise TemplateLimitError


def _raise_exception(message: str) -> None:
    raise JinjaError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _concat(parts: Iterable[str]) -> str:
    found = list(parts)
    _check(sum(map(len, found)))
    return "".join(found)


def _str_join(parts: Iterable[Any]) -> str:
    return _concat(map(str, parts))


def _check(length: int) -> None:
    if length > LONGEST:
        raise TemplateLimitError


@pass_eval_context
def _join(context: EvalContext, parts: Any, d: str = "", attribute: Any = None) -> str:
    found = list(parts)
    if attribute is None:
        _check_join(d, found)
    joined: str = do_join(context, found, d, attribute)
    return joined


def _check_numbers(values: Iterable[Any], largest: int) -> None:
    for value in values:
        if isinstance(value, int) and not -largest <= value <= largest:
            raise TemplateLimitError


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        """Return the marked block without the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception


class _Bounded(_Environment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        super().__init__()
        self.binop_table = {**self.binop_table, "+": _plus, "*": _times, "**": _power, "%": _modulo}
        for name in _RARE:
            self.filters[name] = _reject
        for name, check in _CHECKS.items():
            self.filters[name] = _checked(self.filters[name], check)
        self.filters["join"] = _join
        self.globals["lipsum"] = _reject

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call as Jinja does, after checks of the arguments."""
        _check_numbers((*args, *kwargs.values()), MAX_ARGUMENT)
        name = getattr(__obj, "__name__", "")
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and name in _METHODS:
            _METHODS[name](owner, *args, **kwargs)
        elif name in _GROWING:
            raise TemplateLimitError
        return super().call(__context, __obj, *args, **kwargs)


# Checked operators: the result must not be out of proportion to the operands.


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _plus(left: Any, right: Any) -> Any:
    _check(_size(left) + _size(right))
    return left + right


def _times(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(right, int):
        _check(_size(left) * right)
    elif isinstance(left, int):
        _check(_size(right) * left)
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, *(right if isinstance(right, tuple) else (right,)))
    return left % right


def _check_bits(count: int) -> None:
    if count > MAX_ARGUMENT:
        raise TemplateLimitError


# Checks of filters and methods, called with the same arguments.


def _check_replace(text: object, old: object = "", new: object = "", *_: Any, **__: Any) -> None:
    whole = str(text)
    _check(len(whole) + whole.count(str(old)) * len(str(new)))


def _check_format(text: object, *values: Any, **named: Any) -> None:
    whole = str(text)
    if _WIDE.search(whole):
        raise TemplateLimitError
    each = max((len(str(value)) for value in (*values, *named.values())), default=0)
    _check(len(whole) * (1 + each))


def _check_join(between: object, parts: Any, *_: Any) -> None:
    if not isinstance(parts, (str, list, tuple, Mapping)):
        raise TemplateLimitError
    _check(
        sum(len(part) for part in parts if isinstance(part, str)) + len(parts) * len(str(between))
    )


def _check_indent(text: object, width: object = 4, *_: Any, **__: Any) -> None:
    each = width if isinstance(width, int) else len(str(width))
    _check(str(text).count("\n") * each + each)


def _check_tojson(value: Any, indent: object = None, **_: Any) -> None:
    if indent is not None:
        _check_numbers((indent,), MAX_FILTER_ARGUMENT)
        if len(json.dumps(value)) > MAX_INDENTED:
            raise TemplateLimitError


def _check_rest(_: Any, *values: Any, **named: Any) -> None:
    _check_numbers((*values, *named.values()), MAX_FILTER_ARGUMENT)


def _check_sum(_: Any, __: object = None, start: object = 0) -> None:
    if not isinstance(start, (int, float)):
        raise TemplateLimitError


_METHODS: Mapping[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join,
    "format": _check_format,
    "format_map": lambda text, values: _check_format(text, *values.values()),
}
_CHECKS: Mapping[str, Callable[..., None]] = {
    "replace": _check_replace,
    "format": _check_format,
    "indent": _check_indent,
    "tojson": _check_tojson,
    "round": _check_rest,
    "truncate": _check_rest,
    "sum": _check_sum,
}


def _checked(filtered: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """Wrap a filter so that its arguments are checked first."""
    first = 1 if hasattr(filtered, "jinja_pass_arg") else 0  # such a filter gets the context too

    @wraps(filtered)  # copies Jinja's attributes
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[first:], **kwargs)
        return filtered(*args, **kwargs)

    return checked


CPU_SECONDS = 3
"""Processor time of a rendering in a process."""
MEMORY = 1024 * 1024 * 1024
"""Bytes of address space of a rendering in a process."""


def main() -> None:
    """Render one job from standard input, and write the result to standard output."""
    _set_limit(resource.RLIMIT_CPU, CPU_SECONDS)
    if sys.platform == "linux":  # other systems do not enforce it
        _set_limit(resource.RLIMIT_AS, MEMORY)
    job = json.load(sys.stdin)
    json.dump(_render(job), sys.stdout)


def _set_limit(kind: int, most: int) -> None:
    """Lower a limit of this process, never above the inherited one."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _render(job: dict[str, object]) -> dict[str, str]:
    """Return the prompt, or the error."""
    source, at, variables = job["source"], job["at"], job["variables"]
    if not (isinstance(source, str) and isinstance(at, float) and isinstance(variables, dict)):
        raise TypeError("invalid job")
    try:
        prompt = compiled(source, bounded=False).render({"strftime_now": clock(at), **variables})
    except MemoryError:
        return {"error": f"The chat template took more than {MEMORY} bytes."}
    except FAULTS as error:
        return {"error": f"The chat template does not render: {error}"}
    if len(prompt) > LONGEST:
        return {"error": f"The chat template wrote more than {LONGEST} characters."}
    return {"prompt": prompt}

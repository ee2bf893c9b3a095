"""A model's own chat template, rendered in Jinja's sandbox.

The names a template may use beyond Jinja's own are those that Hugging Face's
`apply_chat_template` gives it: `raise_exception`, `strftime_now`, a `tojson` that leaves
characters as they are, and loop controls.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model without a template, as llama-server does."""


class TemplateError(Exception):
    """The template does not render; the message is Jinja's, or the template's own."""


class ChatTemplate:
    """One template. Compiled once: by `prepare`, or at the first rendering."""

    def __init__(self, source: str, *, bos: str, eos: str, defaults: Mapping[str, Any]) -> None:
        """`bos` and `eos` as the vocabulary writes them; `defaults` are further variables."""
        self.source = source
        self._variables = {"bos_token": bos, "eos_token": eos, **defaults}
        self._template: Template | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Imports Jinja and compiles the template: what the first rendering would wait for.

        A template that does not compile is found out at the rendering.
        """
        from jinja2 import TemplateError as JinjaError

        with self._lock:
            if self._template is None:
                try:
                    self._template = _compile(self.source)
                except JinjaError:
                    return

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        *,
        at: float,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for `messages`, written at that time. Raises TemplateError."""
        from jinja2 import TemplateError as JinjaError

        with self._lock:
            try:
                self._template = self._template or _compile(self.source)
                return self._template.render(
                    {
                        **self._variables,
                        "messages": messages,
                        "strftime_now": datetime.fromtimestamp(at).strftime,
                        "add_generation_prompt": add_generation_prompt,
                        **variables,
                    }
                )
            except (JinjaError, TypeError, ValueError, LookupError, ArithmeticError) as error:
                raise TemplateError(f"The chat template does not render: {error}") from error


def _compile(source: str) -> Template:
    from jinja2 import TemplateError as JinjaError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise JinjaError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)

"""A model's own chat template, rendered where it can do no harm.

Templates come with models and their variables with requests, so neither is trusted: with a name
of one's own choice Jinja can be made to loop for ever, or to fill all memory. Nearly all are done
in a millisecond. They are rendered here, in the event loop's thread, by an environment that gives
up what is out of proportion, and until an alarm clock rings. What has been given up is tried once
more in a process of its own (`template_process`), which has more time, but bounds that hold.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model without a template, as llama-server does."""
PATIENCE, LEAST_PATIENCE = 0.25, 0.01
"""Seconds that the event loop waits for a template; less, where it has waited in vain."""
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import workers.chat.template_sandbox
workers.chat.template_sandbox.main()
"""
APART = 6
"""Seconds for a template in a process of its own, which may use the processor for less."""


class TemplateError(Exception):
    """The template does not render; the message is Jinja's, or the template's own."""


class ChatTemplate:
    """One template. Compiled once: by `prepare`, or at the first rendering."""

    def __init__(self, source: str, *, bos: str, eos: str, defaults: Mapping[str, Any]) -> None:
        """`bos` and `eos` as the vocabulary writes them; `defaults` are further variables."""
        self.source = source
        self._variables = {"bos_token": bos, "eos_token": eos, **defaults}
        self._template: Template | None = None
        self._fault = ""
        """Why it can't be compiled."""
        self._lock = threading.Lock()
        self._patience = PATIENCE
        self._alone = asyncio.Semaphore()
        """One process at a time: what is slow waits for what is slow."""

    def prepare(self) -> None:
        """Imports Jinja and compiles the template: what the first rendering would wait for.

        A template that does not compile is found out at the rendering.
        """
        from workers.chat.template_sandbox import FAULTS, compiled

        with self._lock:
            if self._template is not None or self._fault:
                return
            try:
                self._template = compiled(self.source, bounded=True)
            except FAULTS as error:
                self._fault = f"The chat template does not compile: {error}"

    async def render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, at: float
    ) -> str:
        """The prompt for `messages`, written at that time. Raises TemplateError. On the main
        thread."""
        from workers.chat.template_sandbox import TemplateLimitError

        given = {
            **self._variables,
            "messages": messages,
            "add_generation_prompt": True,
            **variables,
        }
        try:
            prompt = self._render(given, at)
        except (TemplateLimitError, _RangError):
            self._patience = max(self._patience / 2, LEAST_PATIENCE)
            async with self._alone:
                return await asyncio.to_thread(_render_apart, self.source, given, at)
        self._patience = min(self._patience * 2, PATIENCE)
        return prompt

    def _render(self, given: Mapping[str, Any], at: float) -> str:
        """Here and now."""
        from workers.chat.template_sandbox import FAULTS, clock

        self.prepare()
        if self._template is None:
            raise TemplateError(self._fault)
        try:
            with _alarm(self._patience):
                return self._template.render({"strftime_now": clock(at), **given})
        except FAULTS as error:
            raise TemplateError(f"The chat template does not render: {error}") from error


class _RangError(BaseException):
    """The alarm clock rang. No `Exception`: a filter might take that for its own."""


def _render_apart(source: str, variables: Mapping[str, Any], at: float) -> str:
    """The prompt, from a process of its own. Raises TemplateError."""
    import subprocess

    job = json.dumps({"source": source, "variables": variables, "at": float(at)}).encode()
    command = [sys.executable, "-I", "-c", PROGRAM, str(Path(__file__).parents[2])]
    too_slow = TemplateError(f"The chat template took more than {APART} seconds.")
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, timeout=APART, env={}, cwd="/", check=False
        )
    except subprocess.TimeoutExpired:
        raise too_slow from None
    if done.returncode < 0:
        raise too_slow
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise TemplateError("The chat template took more memory than there is for it.") from None
    if "error" in answer:
        raise TemplateError(answer["error"])
    prompt: str = answer["prompt"]
    return prompt


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises _RangError in what takes longer. On the main thread."""

    def ring(*_: object) -> None:
        raise _RangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Chat templates, rendered under limits of time and memory.

Templates come with models and their variables with requests, so neither is trusted: a Jinja
template can loop for ever or fill all memory. Nearly all render in a millisecond. So a template is
rendered first in the event loop's thread, in an environment that rejects disproportionate steps,
and under a timer. A rendering that is stopped there is repeated in a separate process
(`template_sandbox`), which has more time, and limits that the kernel enforces.
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
"""Template of models without one, as in llama-server."""
INLINE_TIMEOUT, MIN_INLINE_TIMEOUT = 0.25, 0.01
"""Seconds for a rendering on the event loop; halved after each timeout, down to the minimum."""
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import workers.chat.template_sandbox
workers.chat.template_sandbox.main()
"""
PROCESS_TIMEOUT = 6
"""Seconds for a rendering in a separate process; its limit of processor time is lower."""


class TemplateError(Exception):
    """A template that does not render; the message is Jinja's or the template's."""


class ChatTemplate:
    """A chat template, compiled once: by `prepare` or at the first rendering."""

    def __init__(self, source: str, *, bos: str, eos: str, defaults: Mapping[str, Any]) -> None:
        """Take the text of the `bos` and `eos` tokens; `defaults` are further variables."""
        self.source = source
        self._variables = {"bos_token": bos, "eos_token": eos, **defaults}
        self._template: Template | None = None
        self._fault = ""
        """Reason why the template does not compile; empty if it does."""
        self._lock = threading.Lock()
        self._timeout = INLINE_TIMEOUT
        self._process_slot = asyncio.Semaphore()
        """Limit of one process at a time, so that slow templates delay only each other."""

    def prepare(self) -> None:
        """Import Jinja and compile the template before the first rendering has to.

        A template that does not compile is reported at the rendering.
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
        """Return the prompt for `messages`. Raises TemplateError. On the main thread only.

        `at` is the current time for the template, in seconds since the epoch.
        """
        from workers.chat.template_sandbox import TemplateLimitError

        given = {
            **self._variables,
            "messages": messages,
            "add_generation_prompt": True,
            **variables,
        }
        try:
            prompt = self._render(given, at)
        except (TemplateLimitError, _TimerExpiredError):
            self._timeout = max(self._timeout / 2, MIN_INLINE_TIMEOUT)
            async with self._process_slot:
                return await asyncio.to_thread(_render_in_process, self.source, given, at)
        self._timeout = min(self._timeout * 2, INLINE_TIMEOUT)
        return prompt

    def _render(self, given: Mapping[str, Any], at: float) -> str:
        """Render on the event loop."""
        from workers.chat.template_sandbox import FAULTS, clock

        self.prepare()
        if self._template is None:
            raise TemplateError(self._fault)
        try:
            with _time_limit(self._timeout):
                return self._template.render({"strftime_now": clock(at), **given})
        except FAULTS as error:
            raise TemplateError(f"The chat template does not render: {error}") from error


class _TimerExpiredError(BaseException):
    """The timer's signal. Not an `Exception`, which a filter might catch."""


def _render_in_process(source: str, variables: Mapping[str, Any], at: float) -> str:
    """Return the prompt, rendered in a separate process. Raises TemplateError."""
    import subprocess

    job = json.dumps({"source": source, "variables": variables, "at": float(at)}).encode()
    command = [sys.executable, "-I", "-c", PROGRAM, str(Path(__file__).parents[2])]
    too_slow = TemplateError(f"The chat template took more than {PROCESS_TIMEOUT} seconds.")
    try:
        done = subprocess.run(
            command,
            input=job,
            capture_output=True,
            timeout=PROCESS_TIMEOUT,
            env={},
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise too_slow from None
    if done.returncode < 0:
        raise too_slow
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise TemplateError("The chat template took more memory than its limit.") from None
    if "error" in answer:
        raise TemplateError(answer["error"])
    prompt: str = answer["prompt"]
    return prompt


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TimerExpiredError in a block that takes longer. On the main thread only."""

    def ring(*_: object) -> None:
        raise _TimerExpiredError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

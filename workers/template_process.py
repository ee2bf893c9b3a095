"""One rendering in a process that ends with it: a job on standard input, what came of it on
standard output. What the process may take holds whatever the template does."""

from __future__ import annotations

import json
import resource
import sys

from workers.template_sandbox import FAULTS, LONGEST, clock, compiled

SECONDS = 3
MEMORY = 1024 * 1024 * 1024


def main() -> None:
    """The process."""
    _bound(resource.RLIMIT_CPU, SECONDS)
    if sys.platform == "linux":  # elsewhere it is not heeded
        _bound(resource.RLIMIT_AS, MEMORY)
    job = json.load(sys.stdin)
    json.dump(_render(job), sys.stdout)


def _bound(what: int, most: int) -> None:
    """No more than that, and than the worker may have."""
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _render(job: dict[str, object]) -> dict[str, str]:
    """The prompt, or the error."""
    source, at, variables = job["source"], job["at"], job["variables"]
    if not (isinstance(source, str) and isinstance(at, float) and isinstance(variables, dict)):
        raise TypeError("this is no job")
    try:
        prompt = compiled(source, bounded=False).render({"strftime_now": clock(at), **variables})
    except MemoryError:
        return {"error": f"The chat template took more than {MEMORY} bytes."}
    except FAULTS as error:
        return {"error": f"The chat template does not render: {error}"}
    if len(prompt) > LONGEST:
        return {"error": f"The chat template wrote more than {LONGEST} characters."}
    return {"prompt": prompt}

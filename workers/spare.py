"""A warm standby: a worker process without a model, `python -m workers.spare`.

Most of the time of a swap is the start of Python and its imports. A standby has done both. It waits
for one line of JSON on standard input, the arguments of `workers.serve`, and becomes that worker.
At the end of standard input it exits, as every worker does.
"""

from __future__ import annotations

import gc
import json
import os
import sys

from workers.lazy_imports import skip_package_init

BAD_USAGE = 2


def prepare() -> None:
    """Import the modules of a worker, in the same way as `workers.serve`."""
    skip_package_init("aiohttp", __version__="")
    import workers.api.server
    import workers.chat.template_sandbox
    import workers.load
    import workers.serve

    # Named so that linters do not report unused imports.
    _ = (workers.api.server, workers.chat.template_sandbox, workers.load, workers.serve)


def wait_for_arguments() -> list[str] | None:
    """Wait for the arguments and return them; None at the end of standard input.

    Read byte by byte: the bytes after the line belong to `Lifeline`.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return None
        line += byte
    return parse_arguments(line)


def parse_arguments(line: bytes) -> list[str]:
    """Return the arguments in the line. Raises ValueError with one sentence."""
    try:
        arguments = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a standby worker needs its arguments as JSON: {error}") from error
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise ValueError("a standby worker needs its arguments as a JSON list of strings")
    return arguments


def main() -> int:
    """Wait for arguments, then serve; return the exit status."""
    gc.disable()  # as in `serve`: imports make many objects and no garbage
    prepare()
    try:
        arguments = wait_for_arguments()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    if arguments is None:
        return 0
    from workers.serve import main as serve

    return serve(arguments)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

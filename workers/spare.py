"""A worker that has no model yet: `python -m workers.spare`.

What a swap costs is mostly starting Python and importing. A spare has that behind it: it waits
for one line of JSON on its standard input, the arguments of `workers.serve`, and becomes that
worker. At the end of standard input it goes, as every worker does.
"""

from __future__ import annotations

import gc
import json
import os
import sys

from workers.lazy_imports import skip_package_init

BAD_USAGE = 2


def prepare() -> None:
    """Imports all that a worker imports, in the way in which it does."""
    skip_package_init("aiohttp", __version__="")
    import workers.api.server
    import workers.chat.template_sandbox
    import workers.load
    import workers.serve

    # Named so that linters do not take them for unused: being imported is their use.
    _ = (workers.api.server, workers.chat.template_sandbox, workers.load, workers.serve)


def wait_for_arguments() -> list[str] | None:
    """The arguments, once they come; None at the end of standard input.

    Read byte by byte: what follows the line is not ours.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return None
        line += byte
    return arguments_in(line)


def arguments_in(line: bytes) -> list[str]:
    """What the line says. Raises ValueError with a sentence if it does not."""
    try:
        arguments = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a spare worker wants its arguments as JSON: {error}") from error
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise ValueError("a spare worker wants its arguments as a JSON list of texts")
    return arguments


def main() -> int:
    """Waits, then serves; the exit status."""
    gc.disable()  # as in `serve`: importing makes many objects and no garbage
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

"""How many files and connections this process may have open."""

from __future__ import annotations

import resource

ENOUGH = 65_536


def raise_limit() -> int:
    """Lift the limit as far as it goes without more rights; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            # macOS allows less than it says; what there is will do.
            return int(soft)
        return most
    return most

"""Groups of models: rules on the models that may be loaded at the same time."""

from __future__ import annotations

from swapd.domain.models import Group, Limits


def group_of(model: str, limits: Limits) -> Group | None:
    """Return the group of a model, or None."""
    return next((group for group in limits.groups if model in group.members), None)


def must_not_coexist(newcomer: str, resident: str, limits: Limits) -> bool:
    """Return True if a worker of `resident` must exit before one of `newcomer` is started.

    A model in no group excludes no other model, and is excluded by exclusive groups.
    """
    if not limits.groups or newcomer == resident:
        return False
    mine, theirs = group_of(newcomer, limits), group_of(resident, limits)
    if mine is None:
        return False
    if mine is theirs:
        return mine.swap
    return mine.exclusive and not (theirs is not None and theirs.persistent)


def belonging(model: str, limits: Limits) -> frozenset[str]:
    """Return the models that are loaded together with this one, itself included, or none."""
    group = group_of(model, limits) if limits.groups else None
    return group.members if group is not None and group.together else frozenset()


def is_spared(newcomer: str, resident: str, limits: Limits) -> bool:
    """Return True if a worker of `resident` is never evicted for one of `newcomer`."""
    if not limits.groups:
        return False
    theirs = group_of(resident, limits)
    return theirs is not None and theirs.persistent and newcomer not in theirs.members

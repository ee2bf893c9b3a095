"""Who may be loaded beside whom, as the configuration's groups have it. Few and seldom many."""

from __future__ import annotations

from swapd.domain.models import Group, Limits


def group_of(model: str, limits: Limits) -> Group | None:
    """The group that a model is in, or None."""
    return next((group for group in limits.groups if model in group.members), None)


def must_not_coexist(newcomer: str, resident: str, limits: Limits) -> bool:
    """Whether a worker of `resident` has to go before one of `newcomer` is started.

    A model in no group asks nobody to go, and is in nobody's group but goes for exclusive ones.
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
    """The models that are loaded together with this one, itself among them; else none."""
    group = group_of(model, limits) if limits.groups else None
    return group.members if group is not None and group.together else frozenset()


def is_spared(newcomer: str, resident: str, limits: Limits) -> bool:
    """Whether a worker of `resident` never goes for one of `newcomer`, however little room."""
    if not limits.groups:
        return False
    theirs = group_of(resident, limits)
    return theirs is not None and theirs.persistent and newcomer not in theirs.members

"""`groups`: which models may be loaded beside which, in llama-swap's words."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingType

from swapd.config.problems import did_you_mean
from swapd.config.schema import GroupEntry
from swapd.config.tree import Mapping, Scalar, node_at
from swapd.config.typed import Report, read
from swapd.domain.models import Group


def groups_of(
    report: Report, models: Iterable[str], env: MappingType[str, str], max_resident: int = 0
) -> tuple[Group, ...]:
    """The groups of a configuration; members must be models, and each in one group at most.

    Those that are loaded together must not be more than may be loaded at once.
    """
    section = node_at(report.tree, ("groups",))
    if section is None or (isinstance(section, Scalar) and section.value is None):
        return ()
    if not isinstance(section, Mapping):
        report.problem(("groups",), "must be a section with a group's name as each key")
        return ()
    known = set(models)
    owner: dict[str, str] = {}
    found = []
    for name, entry in section.entries.items():
        path = ("groups", name)
        if not isinstance(entry.node, Mapping):
            report.problem(path, "must be a section with members")
            continue
        group = read(GroupEntry, entry.node, path, report, env)
        for i, member in enumerate(group.members):
            here = (*path, "members", i)
            if member not in known:
                report.problem(here, f"there is no model {member}{did_you_mean(member, known)}")
            elif owner.setdefault(member, name) != name:
                report.problem(here, f"{member} is in group {owner[member]} already")
        members = frozenset(group.members)
        if group.together and group.swap:
            report.problem((*path, "swap"), "must be false for members that are loaded together")
        if group.together and 0 < max_resident < len(group.members):
            message = f"{len(group.members)} members can't be together: max_resident is"
            report.problem((*path, "together"), f"{message} {max_resident}")
        swap = not group.together if group.swap is None else group.swap
        found.append(Group(name, members, swap, group.exclusive, group.persistent, group.together))
    return tuple(found)

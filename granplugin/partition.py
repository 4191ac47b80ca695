"""Groups that have members in common are one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Member = TypeVar("Member", bound=Hashable)


def joined(groups: Iterable[Sequence[Member]]) -> dict[Member, Member]:
    """Each member, in the order they come, and the member that stands for all it is joined with,
    which is that of the first member of the last group that joined some.

    >>> joined([["a", "b"], ["c"], ["d", "e"], ["e", "b"]])
    {'a': 'd', 'b': 'd', 'c': 'c', 'd': 'd', 'e': 'd'}
    """
    parent: dict[Member, Member] = {}

    def root(member: Member) -> Member:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for group in groups:
        for member in group:
            parent.setdefault(member, member)
            parent[root(member)] = root(group[0])
    return {member: root(member) for member in parent}

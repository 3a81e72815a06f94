"""Which groups are worth learning from (DAPO, arXiv 2503.14476)."""

from __future__ import annotations

from rlkit.types import Group


def has_signal(group: Group, graded_by: str | None = None) -> bool:
    """Whether the rewards of a group differ, and its grades too where it has any; failed rewards are left out.

    Of right and wrong this is 0 < right samples < all (section 3.2): a penalty beside the grade makes no signal.
    """
    valid = [s for s in group.samples if s.reward is not None]
    grades = {s.components[graded_by] for s in valid if s.components.get(graded_by) is not None} if graded_by else set()
    return len(grades) != 1 and len({s.reward for s in valid}) > 1

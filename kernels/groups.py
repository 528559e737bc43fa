"""How many 4-bit scales a row has: what layouts write, and the cost model reckons with."""

_GROUP_STEP = 64
_LINKS_PER_GROUP = 32
"""Links that should share a 4-bit scale: fewer cost more bytes than they gain in quality."""


def group_width(columns: int, groups: int) -> int:
    """The columns of a group, for `groups` >= 1 groups over `columns`: a multiple of 64."""
    return _GROUP_STEP * max(1, -(-columns // (_GROUP_STEP * groups)))


def group_count(shape: tuple[int, ...], links: int) -> int:
    """The groups that a 4-bit layer gets: about 32 links of a row each."""
    rows, columns = shape
    groups = max(1, links // max(1, rows) // _LINKS_PER_GROUP)
    # The width is rounded up, so the count that it leads to may be smaller; repeat until the two agree.
    while (fitting := max(1, -(-columns // group_width(columns, groups)))) != groups:
        groups = fitting
    return groups

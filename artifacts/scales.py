"""How weights share scales where they are stored as integers: what pruning rounds to, and layouts store.

int8 has one scale a row, and int4 one for each group of columns of a row. A group is a multiple of 64 columns wide, and
holds about 32 links of a row.
"""

INT8_LARGEST = 127
INT4_LARGEST = 7
GROUP_STEP = 64
_LINKS_PER_GROUP = 32
"""Links that should share a 4-bit scale: fewer cost more bytes than they gain in quality."""


def group_width(columns: int, groups: int) -> int:
    """The columns of a group, for `groups` >= 1 groups over `columns`: a multiple of 64."""
    return GROUP_STEP * max(1, -(-columns // (GROUP_STEP * groups)))


def group_count(shape: tuple[int, ...], links: int) -> int:
    """The groups that a 4-bit layer gets: about 32 links of a row each."""
    rows, columns = shape
    groups = max(1, links // max(1, rows) // _LINKS_PER_GROUP)
    # The width is rounded up, so the count that it leads to may be smaller; repeat until the two agree.
    while (fitting := max(1, -(-columns // group_width(columns, groups)))) != groups:
        groups = fitting
    return groups

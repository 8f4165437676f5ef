"""A page of Markdown whose tables are made: the places for them. Knows places; not what stands there."""

import re
from collections.abc import Callable

PLACE = re.compile(r"(<!-- show (\w+) (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
"""A study's name and that of its best arm; what is told of it stands up to the line that ends it."""


def filled_in(page: str, told: Callable[[str, str], str]) -> str:
    """The page with what is told now of each study it names."""
    return PLACE.sub(lambda place: f"{place[1]}\n{told(place[2], place[3])}\n\n{place[4]}", page)

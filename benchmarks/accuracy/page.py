"""A page of Markdown whose tables are made: the places for them. Knows places; not what stands there."""

import re
from collections.abc import Callable

PLACE = re.compile(r"(<!-- show (\w+) (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
"""A study's name and that of its best arm; its tables stand up to the line that ends it."""


def filled_in(page: str, tables: Callable[[str, str], str]) -> str:
    """The page with the tables of now for each study it names."""
    return PLACE.sub(lambda place: f"{place[1]}\n{tables(place[2], place[3])}\n\n{place[4]}", page)

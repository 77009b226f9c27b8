"""A cheap topic for questions that carry none: the first content word, lower-cased."""

from __future__ import annotations

import re

_EMPTY = frozenset(
    re.findall(
        "[a-z]+",
        """a an and any are as at be best better by can could do does doing for from get getting good have how
        i if in into is it its keep make making more most my of on one or order out should so some someone
        something than that the their them there these they this to up use using want was what when where
        which while who whom whose why will with without would you your""",
    )
)


def first_content_word(text: str) -> str:
    """The first word of ``text`` that is no function word, or ``""``: questions on one thing share it."""
    for word in re.findall(r"[a-z]+", text.lower()):
        if word not in _EMPTY:
            return word
    return ""

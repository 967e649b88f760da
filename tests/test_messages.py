"""Words that error messages share."""

from __future__ import annotations

import pytest

from lensteer.messages import needs_extra, short


@pytest.mark.parametrize(("length", "cut"), [(78, False), (79, True), (5000, True)])
def test_a_long_value_loses_its_middle_and_is_never_longer_than_80_characters(length: int, cut: bool) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    shown = short(text)
    assert len(shown) == 80
    assert (shown != repr(text)) is cut and (" … " in shown) is cut
    assert shown.startswith("'abcdef") and shown.endswith(f"{text[-10:]}'")


def test_what_is_missing_is_named_with_its_extra_and_the_reason() -> None:
    error = needs_extra("a probe", "scikit-learn", ImportError("No module named 'sklearn'"))
    assert str(error) == "a probe needs scikit-learn (No module named 'sklearn'); pip install \"lensteer[eval]\""

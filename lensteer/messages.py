"""What error messages share: a value cut to a length that can be read, and the extra that a missing package is in."""

from __future__ import annotations

from typing import Any

_LONGEST = 80


def short(value: Any) -> str:
    """A value as it is written in code, at most 80 characters of it; a long one loses its middle."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 28]} … {shown[-25:]}"


def needs_extra(what: str, package: str, error: ImportError, extra: str = "eval") -> ImportError:
    """The error to raise where a package of an extra cannot be imported.

    Args:
        what: the thing that needs it, as in "fitting ITI".
        error: what its import raised.
    """
    return ImportError(f'{what} needs {package} ({error}); pip install "lensteer[{extra}]"')

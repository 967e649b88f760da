"""One progress bar for all long work: what it is, how far, how long still; silent where it is not wanted."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(total: int, description: str, *, shown: bool = True, unit: str = "prompt") -> Any:
    """A tqdm bar (notebook or terminal), hidden for ``shown=False`` and where stderr is not a terminal or notebook."""
    from tqdm.auto import tqdm

    # tqdm's own rule for None: hidden where the output is not a terminal. A notebook has no terminal but wants the bar.
    hidden = True if not shown else (False if "ipykernel" in sys.modules else None)
    return tqdm(total=total, desc=description, unit=unit, disable=hidden, leave=False, dynamic_ncols=True)

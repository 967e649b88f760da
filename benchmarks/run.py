"""Benchmarks of lensteer on the embedded model: extraction, steered decoding, sweep, key elements, patching, transport.

    make bench                                       # everything
    make bench ARGS="--quick --only decoding"
    .venv/bin/python benchmarks/run.py --json results.json

See README.md beside this file for what is measured and for results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch loads, and inherited by the peers' process: idle threads sleep instead of spinning, nothing is fetched.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if TYPE_CHECKING:
    from measure import Result, Settings

BENCHMARKS = ("extraction", "decoding", "sweep", "elements", "patching", "transport")
PEERS = Path(__file__).resolve().parent.parent / ".venv-peers"


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, print a table, and return 1 if a bar was missed."""
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    import transformers
    from measure import Settings, machine

    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    peers = options.peers
    if peers is None and (PEERS / ".installed").is_file():
        peers = PEERS / "bin" / "python"
    settings = Settings(options.threads, options.clock, options.quick, options.repeats, peers)
    where = machine(settings)
    print("  ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    results: list[Result] = []
    for name in options.only or BENCHMARKS:
        results += _run(name, settings)
    print(f"load after: {', '.join(f'{x:.1f}' for x in os.getloadavg())}")
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "results": [r.as_dict() for r in results]}, indent=1))
    return int(any(c.met is False for result in results for c in result.comparisons))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="one benchmark; may be given again")
    parser.add_argument("--quick", action="store_true", help="smaller work, fewer rounds: to see that it runs")
    parser.add_argument("--repeats", type=int, help="rounds of every benchmark")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contender")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: seconds of CPU, all threads together; steadier where other jobs run on the machine",
    )
    parser.add_argument("--peers", type=Path, help="python of the peers' environment (default: .venv-peers)")
    parser.add_argument("--json", type=Path, help="write everything there, every round's seconds included")
    return parser.parse_args(arguments)


def _run(name: str, settings: Settings) -> list[Result]:
    results = []
    for result in import_module(name if name != "sweep" else "sweeping").run(settings):
        for comparison in result.comparisons if settings.quick else ():
            comparison.bar = None  # the bars are for the full sizes
        _print(result)
        results.append(result)
    return results


def _print(result: Result) -> None:
    from measure import spread

    print(f"\n{result.title}")
    width = max(len(name) for name in [*result.times, *(c.what for c in result.comparisons)])
    for name, times in result.times.items():
        short = max(times) < 1
        print(f"  {name:{width}}  {spread([1000 * x for x in times] if short else times)} {'ms' if short else 's'}")
    for c in result.comparisons:
        verdict = "" if c.bar is None else f"   bar {c.bar}: {'met' if c.met else 'MISSED'}"
        print(f"  {c.what:{width}}  {spread(c.values)} x{verdict}")
    for line in (*result.checks, *result.notes):
        print(f"  - {line}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

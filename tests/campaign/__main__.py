"""The command: `python -m campaign --minutes 20` from tests/, or `make campaign MINUTES=20`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

#: Trials run on this many threads each; torch's OpenMP must not start in the process that forks.
THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

from campaign.kinds import KINDS, prepare_kind  # noqa: E402
from campaign.outcome import FINDING, OK, REFUSED, Outcome  # noqa: E402
from campaign.runner import run  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="campaign", description="Search for faults until the time is over."
    )
    parser.add_argument("--kind", default="all", choices=[*KINDS, "all"])
    parser.add_argument("--minutes", type=float, default=None, help="for all kinds together (5)")
    parser.add_argument("--trials", type=int, default=None, help="of each kind, instead of minutes")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the first trial; trial i has seed + i (random)"
    )
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2)), help="processes (one per core)"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print refusals by class too, at full length"
    )
    return parser.parse_args()


class Tally:
    """Outcomes of one kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.verdicts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.findings: dict[str, list[int]] = {}

    def add(self, seed: int, outcome: Outcome) -> None:
        self.verdicts[outcome.verdict] += 1
        if outcome.verdict == REFUSED:
            self.refused[outcome.what] += 1
        if outcome.verdict != FINDING:
            return
        known = self.findings.setdefault(outcome.what, [])
        known.append(seed)
        if len(known) > 1:
            return
        print(f"\n=== {self.name}, seed {seed}: {outcome.what}")
        print(outcome.detail.strip())
        print("--- reproduction")
        print(
            outcome.reproduction.strip()
            or f"python -m campaign --kind {self.name} --seed {seed} --trials 1"
        )
        print("---", flush=True)

    def summary(self, verbose: bool) -> None:
        v = self.verdicts
        print(
            f"{self.name}: {sum(v.values())} trials: {v[OK]} ok, {v[REFUSED]} refused, "
            f"{v[FINDING]} with a finding"
        )
        for what, count in self.refused.most_common(None if verbose else 12):
            print(f"    refused {count:5}  {what}")
        for what, seeds in sorted(self.findings.items(), key=lambda item: -len(item[1])):
            print(f"    FOUND   {len(seeds):5}  {what}  (seeds {', '.join(map(str, seeds[:4]))})")


def main() -> int:
    args = parse()
    names = list(KINDS) if args.kind == "all" else [args.kind]
    first = random.SystemRandom().randrange(1 << 30) if args.seed is None else args.seed
    minutes = 5.0 if args.minutes is None and args.trials is None else args.minutes
    print(f"campaign: {', '.join(names)}, from seed {first}", flush=True)
    tallies = []
    with tempfile.TemporaryDirectory(prefix="fatnn-campaign-") as folder:
        for index, name in enumerate(names):
            tally = Tally(name)
            tallies.append(tally)
            kind = prepare_kind(name, folder)

            def seeds() -> Iterator[int]:
                seed = first
                while args.trials is None or seed < first + args.trials:
                    yield seed
                    seed += 1

            until = None
            if minutes is not None:
                share = minutes * 60 / len(names)
                until = START + share * (index + 1)
                until = max(until, time.monotonic() + share / 4)
            for seed, outcome in run(kind, seeds(), until, args.jobs, folder):
                tally.add(seed, outcome)
    print()
    for tally in tallies:
        tally.summary(args.verbose)
    return 1 if any(tally.findings for tally in tallies) else 0


START = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())

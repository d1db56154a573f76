"""Attack the commands, and write what survived: `make campaign`, or `CAMPAIGN=quick make campaign`.

    python tests/campaign/run.py                              all campaigns in full
    python tests/campaign/run.py --scale 0.1 --only kill      a tenth of those whose name starts with "kill"
    python tests/campaign/run.py --quick                      every campaign, a few attempts each

Each campaign is kept in the JSON file as it ends or is stopped, so that the page states what was tried, not what was
planned. Everything is a function of the seed, apart from the moments at which a clock decides.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "toys")]

import matplotlib.pyplot  # noqa: E402, F401 - imported once here, and not in every child
import torch  # noqa: E402

torch.set_num_threads(1)

import attacks  # noqa: E402
from page import read_results, store_result, write_page  # noqa: E402
from tallies import Campaign, Tally, lose  # noqa: E402
from works import Work, make_work  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "reliability.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the campaigns that were asked for; return 1 if anything was lost or silent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few attempts of each: under 5 minutes on 2 cores")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="campaigns whose name starts so")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of attempts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="campaigns at the same time")
    parser.add_argument("--limit", type=float, help="seconds of one campaign, after which it ends")
    parser.add_argument("--out", type=Path, help="the JSON; its page is written beside it (default: docs/results)")
    parser.add_argument("--list", action="store_true", help="list the campaigns and stop")
    flags = parser.parse_args(arguments)
    chosen = [c for c in attacks.CAMPAIGNS if c.name.startswith(tuple(flags.only))]
    if flags.list:
        print("\n".join(f"{c.name:28s}{c.full:7,}  {c.about}" for c in chosen))
        return 0
    if flags.quick:
        flags.scale, flags.limit = min(flags.scale, 0.01), flags.limit or 20.0
    out = flags.out or (Path(tempfile.gettempdir()) / "reliability.json" if flags.quick else RESULTS)
    root = Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        work = make_work(root)
        print(f"material is made in {root}", flush=True)
        run_all(chosen, work, flags, out)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    rows = [row for row in read_results(out)["campaigns"].values() if row["name"] in {c.name for c in chosen}]
    for row in rows:
        for note in row["notes"]:
            print(f"{row['name']}: {note}")
    bad = sum(row["lost"] + row["silent"] for row in rows)
    print(f"{sum(row['tried'] for row in rows):,} tried, {bad} lost or silent; wrote {out} and its page")
    return int(bad > 0)


def run_all(chosen: list[Campaign], work: Work, flags: argparse.Namespace, out: Path) -> None:
    """Run campaigns in children, `workers` at a time, and keep what each found, also of one that is stopped."""
    left, running = sorted(chosen, key=lambda c: c.full, reverse=True), {}
    try:
        while left or running:
            while left and len(running) < flags.workers:
                campaign = left.pop(0)
                path = work.root / f"{campaign.name}.json"
                child = os.fork()
                if not child:
                    _be_worker(campaign, work, flags, path)
                running[child] = (campaign, path)
            child, _ = os.wait()
            if child in running:
                _keep(*running.pop(child), flags, out)
    finally:
        for child, (campaign, path) in running.items():
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            _keep(campaign, path, flags, out)
        write_page(out)


def _keep(campaign: Campaign, path: Path, flags: argparse.Namespace, out: Path) -> None:
    if path.exists():
        row = store_result(path, out, flags)
        print(f"{campaign.name:28s}{row['tried']:6} tried {row['survived']:6} survived {row['lost']:4} lost "
              f"{row['silent']:4} silent {row['seconds']:7.1f} s  {row['how']}", flush=True)  # fmt: skip


def _be_worker(campaign: Campaign, work: Work, flags: argparse.Namespace, path: Path) -> None:
    """Run one campaign, and leave its tally in `path` from time to time; never returns."""
    code = 1
    try:
        count = max(campaign.least, round(campaign.full * flags.scale))
        tally = Tally(campaign.name, campaign.about, flags.seed, count)
        began = written = time.monotonic()
        try:
            for result in campaign.attack(work, count, flags.seed):
                tally.add(result)
                tally.seconds = round(time.monotonic() - began, 1)
                if time.monotonic() - written > 1:
                    tally.write(path)
                    written = time.monotonic()
                if flags.limit is not None and tally.seconds > flags.limit:
                    break
        except Exception as error:  # noqa: BLE001 - a campaign that fails is a row, and the others go on
            traceback.print_exc()
            note = f"the campaign itself failed: {type(error).__name__}: {str(error)[-300:]}"
            tally.add(lose("the campaign failed", note))
        tally.write(path)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

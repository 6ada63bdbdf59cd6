"""Count what becomes of runs of several processes that are killed, interrupted or torn apart.

    python benchmarks/process_faults.py [--json faults.json] [--parts killed signals …]

Photos and weights are those of docs/benchmarks.md, in ../shared or the folder that FINETUNE_SHARED
names. The parts print Markdown tables, which docs/distributed.md contains:

- killed: runs of two processes under ``--nproc``, and under torchrun with ``--max-restarts``, of
  which one process is killed at a random time; each is to end with the weights of a whole run;
- signals: SIGINT and SIGTERM to a process or to the launcher at random times, each followed by
  ``--resume``; no process may be left, and the run is to end with the weights of a whole run;
- nodes: two network namespaces as two machines under torchrun; needs root and Linux;
- chain: a run that two processes begin, one continues and three end, in float64;
- freezing: the cases in which frozen parameters and DistributedDataParallel disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from measure import origin
from processes import REPOSITORY, SHARED, gap, link_photos, pairs, start, train, write_config
from tables import markdown

EVERYTHING = "freeze.patterns=[]"
LONGEST_S = 900
"""Seconds after which a run counts as hung."""
MODULE = ["-m", "finetune"]
TORCHRUN = ["-m", "torch.distributed.run"]
SECONDS_TO_END = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=10, help="killed processes by each launcher")
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision"))
    for part in options.parts:
        with tempfile.TemporaryDirectory() as name:
            document[part], table = PARTS[part](Path(name), options)
        print(f"\n{part}\n\n{table}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=1) + "\n")


def _launch(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env=os.environ
        | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _killed(folder: Path, options: argparse.Namespace) -> tuple[Any, str]:
    """Kill a process at a random time, and compare the weights with those of a whole run."""
    config = write_config(folder, SHARED / "data/ants_bees", 48)
    settings = [EVERYTHING, "train.epochs=6", "train.checkpoint_minutes=0.02"]
    train(config, folder / "whole", 2, *settings)
    words = ["train", "--config", str(config), *pairs(settings)]
    launchers = {
        "`finetune train --nproc 2`": [*MODULE, *words, "--nproc", "2"],
        "`torchrun --max-restarts 3`": [
            *(*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=3"),
            *(*MODULE, *words),
        ],
    }
    rng, found = random.Random(options.kills), {}
    rows: list[list[str]] = []
    for name, command in launchers.items():
        same = finished = killed = 0
        for number in range(options.kills):
            run = folder / f"run-{len(rows)}-{number}"
            child = _launch(folder, *command, "--set", f"output_dir={run}")
            time.sleep(rng.uniform(8.0, 16.0))
            ranks = _children(child.pid)
            if ranks:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(ranks), signal.SIGKILL)
                    killed += 1
            try:
                _, said = child.communicate(timeout=LONGEST_S)
            except subprocess.TimeoutExpired:
                child.kill()
                continue
            finished += child.returncode == 0
            if child.returncode == 0:
                same += gap(folder / "whole", run) == 0
            else:
                print(said[-1500:], file=sys.stderr, flush=True)
        found[name] = {"killed": killed, "finished": finished, "same": same}
        rows.append([name, *(str(value) for value in (options.kills, killed, finished, same))])
    header = ["launcher", "runs", "killed before their end", "finished", "with identical weights"]
    return found, markdown(header, rows)


def _signals(folder: Path, options: argparse.Namespace) -> tuple[Any, str]:
    """Interrupt runs again and again until they end, and compare them with a whole run."""
    config = write_config(folder, SHARED / "data/ants_bees", 64)
    settings = [EVERYTHING, "train.epochs=12", "train.checkpoint_minutes=0.1"]
    train(config, folder / "whole", 2, *settings)
    words = [*MODULE, "train", "--config", str(config), *pairs(settings), "--nproc", "2"]
    rng = random.Random(1)
    ended: dict[str, int] = {}
    seconds, left, runs, same, number = [], 0, 0, 0, 0
    run = folder / f"run-{runs}"
    while number < options.signals:
        resume = ["--resume"] if (run / "last.pt").exists() else ["--overwrite"]
        child = _launch(folder, *words, "--set", f"output_dir={run}", *resume)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=rng.uniform(4.0, 24.0))
        if child.poll() is None:
            ranks = _children(child.pid)
            asked = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(
                    rng.choice([child.pid, *ranks]), rng.choice([signal.SIGINT, signal.SIGTERM])
                )
            number += 1
            _, said = child.communicate(timeout=LONGEST_S)
            seconds.append(time.monotonic() - asked)
            left += sum(Path(f"/proc/{rank}").exists() for rank in ranks)
            ended[str(child.returncode)] = ended.get(str(child.returncode), 0) + 1
            if child.returncode not in (0, 130, 143):
                print(said[-1500:], file=sys.stderr, flush=True)
        if child.returncode == 0:
            runs, same = runs + 1, same + (gap(folder / "whole", run) == 0)
            run = folder / f"run-{runs}"
    found = {"codes": ended, "seconds": seconds, "left": left, "runs": runs, "same": same}
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(ended.items()))
    rows = [
        ["signals", str(number)],
        ["exit codes", codes],
        ["seconds until the launcher had ended, at most", f"{max(seconds):.1f}"],
        ["processes left", str(left)],
        ["runs that ended in the course of this", str(runs)],
        ["of these with identical weights", str(same)],
    ]
    return found, markdown(["", "two processes"], rows)


def _children(pid: int) -> list[int]:
    """Return the processes of a run that a launcher has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _nodes(folder: Path, _: argparse.Namespace) -> tuple[Any, str]:
    """Train on two machines, which are network namespaces; kill a process of the second one."""
    config = write_config(folder, SHARED / "data/ants_bees", 48)
    settings = [EVERYTHING, "train.epochs=6", "train.checkpoint_minutes=0.02"]
    train(config, folder / "whole", 2, *settings)
    rows, found = [], []
    for number in range(3):
        for kills in (False, True):
            run = folder / f"run-{number}-{kills}"
            codes, same = _on_two_nodes(folder, run, config, settings, kills=kills)
            killed = "one process of the second" if kills else "none"
            found.append([kills, codes, same])
            rows.append([killed, ", ".join(map(str, codes)), "yes" if same else "no"])
            print(rows[-1], file=sys.stderr, flush=True)
    return found, markdown(["killed", "exit codes", "identical weights"], rows)


def _on_two_nodes(
    folder: Path, run: Path, config: Path, settings: Sequence[str], *, kills: bool
) -> tuple[list[int], bool]:
    names, links = ("finetune0", "finetune1"), ("ft0", "ft1")
    addresses = ("10.77.0.1", "10.77.0.2")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for name, link, address in zip(names, links, addresses, strict=True):
            ip("link", "set", link, "netns", name)
            for words in (
                ("addr", "add", f"{address}/24", "dev", link),
                ("link", "set", link, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", name, *words)
        nodes = []
        for number, (name, link, address) in enumerate(zip(names, links, addresses, strict=True)):
            # One core each, as two processes of one machine have: the number of threads decides
            # about the last digits.
            command = [
                *("ip", "netns", "exec", name, "taskset", "--cpu-list", str(number)),
                *(sys.executable, *TORCHRUN, "--nnodes=2"),
                *("--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"),
                *(f"--rdzv-endpoint={addresses[0]}:29500", "--rdzv-id=two"),
                *(f"--rdzv-conf=is_host={int(number == 0)}", f"--local-addr={address}"),
                *(*MODULE, "train", "--config", str(config), *pairs(settings)),
                *("--set", f"output_dir={run}"),
            ]
            environment = os.environ | {
                "XDG_CACHE_HOME": str(folder / "cache"),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": link,
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            }
            nodes.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        if kills:
            end = time.monotonic() + LONGEST_S
            while not (run / "last.pt").exists() and time.monotonic() < end:
                time.sleep(0.1)
            for rank in _children(nodes[1].pid):
                with suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGKILL)
        codes = []
        for node in nodes:
            try:
                _, said = node.communicate(timeout=LONGEST_S)
            except subprocess.TimeoutExpired:
                node.kill()
                _, said = node.communicate()
            codes.append(node.returncode)
            if node.returncode:
                print(said[-3000:], file=sys.stderr, flush=True)
        return codes, not any(codes) and gap(folder / "whole", run) == 0
    finally:
        for name in names:
            ip("netns", "del", name)


def _chain(folder: Path, _: argparse.Namespace) -> tuple[Any, str]:
    """Begin in two processes, continue in one and end in three."""
    link_photos(folder / "photos", 85)
    config = write_config(folder, folder / "photos", 64)
    settings = ["freeze.patterns=['*', '!features.18.*']", "schedule.name=constant"]
    train(config, folder / "alone", 1, *settings, "train.epochs=6", precision="float64")
    for epochs, size in ((2, 2), (4, 1), (6, 3)):
        how = ["--resume"] if epochs > 2 else ["--overwrite"]
        words = pairs([*settings, f"train.epochs={epochs}"])
        children = start(config, folder / "run", size, *how, *words, precision="float64")
        for child in children:
            said = child.communicate(timeout=LONGEST_S)[1]
            if child.returncode:
                raise SystemExit(said)
    found = gap(folder / "alone", folder / "run")
    rows = [["epochs 1 and 2 in two processes, 3 and 4 in one, 5 and 6 in three", f"{found:.0e}"]]
    return found, markdown(["run", "largest difference from one process, float64"], rows)


STAGES = {
    "frozen from the start": "[{epochs: 2, freeze: {patterns: ['*', '!features.18.*']}}]",
    "unfrozen after a first stage": "[{epochs: 1, freeze: {patterns: ['*']}}, "
    "{epochs: 1, freeze: {patterns: ['*', '!features.18.*']}}]",
    "frozen after a first stage": "[{epochs: 1, freeze: {patterns: []}}, "
    "{epochs: 1, freeze: {patterns: ['*', '!features.18.*']}}]",
    "unfrozen, frozen and unfrozen again": "[{epochs: 1, freeze: {patterns: []}}, "
    "{epochs: 1, freeze: {patterns: ['*']}}, {epochs: 1, freeze: {patterns: []}}]",
}


def _freezing(folder: Path, _: argparse.Namespace) -> tuple[Any, str]:
    """Try what goes wrong, or hangs, with DistributedDataParallel and frozen parameters."""
    link_photos(folder / "photos", 31)
    config = write_config(folder, folder / "photos", 64)
    rows: list[list[str]] = []

    def compared(case: str, *settings: str) -> None:
        train(config, folder / "one", 1, *settings, precision="float64")
        train(config, folder / "two", 2, *settings, precision="float64")
        rows.append([case, f"{gap(folder / 'one', folder / 'two'):.0e} from one process"])
        print(rows[-1], file=sys.stderr, flush=True)

    def refused(case: str, *of_each: Sequence[str]) -> None:
        began = time.monotonic()
        children = start(config, folder / "no", 2, "--overwrite", of_each=of_each)
        said = [child.communicate(timeout=LONGEST_S)[1] for child in children]
        lines = [
            line for text in said for line in text.splitlines() if line.startswith("finetune:")
        ]
        codes = ", ".join(str(child.returncode) for child in children)
        seconds = time.monotonic() - began
        rows.append(
            [case, f"{len(lines)} message after {seconds:.0f} s, exit codes {codes}: {lines[0]}"]
        )

    for case, stages in STAGES.items():
        write_config(folder, folder / "photos", 64, stages=stages)
        compared(case)
    write_config(folder, folder / "photos", 64)
    compared("batch norms over both processes, on CPUs", EVERYTHING, "train.epochs=2")
    compared("all but the new head frozen", "augment.policy=crop_flip")
    refused(
        "other frozen parameters in one process",
        pairs(["freeze.patterns=['*']"]),
        pairs(["freeze.patterns=['*', '!features.18.*']"]),
    )
    still = ["train.epochs=1", "optimizer.lr=1e-30", "data.batch_size=7"]
    scores = [train(config, folder / "still", size, *still)["last"] for size in (1, 2)]
    rows.append(["31 images evaluated: accuracy and loss", _same(scores, "top1", "loss")])
    rows.append(["mean of the recalls of both classes", _same(scores, "balanced_accuracy")])
    return rows, markdown(["case", "two processes"], rows)


def _same(scores: Sequence[dict[str, Any]], *keys: str) -> str:
    equal = all(scores[0][key] == scores[1][key] for key in keys)
    return "the bits of one process" if equal else "other than of one process"


Part = Callable[[Path, argparse.Namespace], tuple[Any, str]]
PARTS: dict[str, Part] = {
    "killed": _killed,
    "signals": _signals,
    "nodes": _nodes,
    "chain": _chain,
    "freezing": _freezing,
}

if __name__ == "__main__":
    main()

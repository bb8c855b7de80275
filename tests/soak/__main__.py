"""`python -m tests.soak --minutes 30 --seed 0` strikes at training and measuring until the time is over, and prints its counts.

Each round takes a job (a training by one or two processes, or measurements by one or two), strikes at it (SIGKILL at a random
moment, or at one of its opens, writes, renames and unlinks; or a disk that is full from one of them on), repeats its command
until it succeeds, and compares: weights bit for bit, rows and counts of every record, no file that does not belong there. A
reader looks at the store all the time. At the end bits are flipped in checkpoints, training states, rows and records.
"""

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from sanbench.data import load_dataset
from sanbench.errors import SanbenchError
from sanbench.models.checkpoints import FORMAT as CHECKPOINT
from sanbench.models.checkpoints import read_checkpoint, weights_hash
from sanbench.store.check import check
from sanbench.store.files import Store
from sanbench.training.state import FORMAT as TRAINING
from tests.support.class_folders import make_class_folders
from tests.support.processes import ENVIRONMENT, ROOT

STRIKE = Path(__file__).parent / "strike.c"
TRAIN = ["train", "resnet26", "--set", "width=0.25", "--epochs", "2", "--batch-size", "8", "--image-size", "32"]
TRAIN += ["--workers", "0", "--save-minutes", "0.0001", "--run", "job", "--resume", "auto"]
MEASURE = {
    "accuracy": ["accuracy"],
    "rotate": ["rotate", "--angles", "90,30"],
    "corrupt": ["corrupt", "--kinds", "fog,jpeg", "--severity", "1:2"],
    "attack": ["attack", "--attack", "pgd", "--eps", "2/255,4/255", "--steps", "3"],
}
PROGRAM = "import sys; from sanbench.evaluation import evaluate; evaluate.PART = 3; from sanbench_cli.main import app; app()"
EXPECTED = {  # of a run and a store, beside what belongs to them
    "runs": {"config.json", "metrics.jsonl", "last.pt", "best.pt"},
}


class Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw, self.counts = folder, random.Random(seed), Counter[str]()
        self.library = folder / "strike.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(STRIKE), "-ldl"], check=True)
        self.data = make_class_folders(folder / "data")
        self.faults: list[str] = []

    def run(self, words: list[str], strike: dict[str, str] | None = None, kill_after: float | None = None) -> tuple[int, str]:
        """A command in a process group of its own; its exit code and what it said on stderr."""
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
        if strike is not None:
            environment |= {"LD_PRELOAD": str(self.library), **strike}
        command = [sys.executable, "-c", PROGRAM, *words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, **pipes) as process:
            try:
                _, error = process.communicate(timeout=kill_after or 600)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                _, error = process.communicate()
        return process.returncode, error

    def job(self, name: str, place: Path) -> list[str]:
        if name.startswith("train"):
            processes = ["--nproc", name.removeprefix("train ")] if name != "train 1" else []
            return [*TRAIN, "--data", f"folder:{self.data}", "--runs", str(place / "runs"), *processes]
        kind, processes = name.split()
        where = ["--runs", str(self.folder / "reference" / "runs"), "--results", str(place / "results")]
        return [*MEASURE[kind], "job", *where, "--nproc", processes]

    def undisturbed(self) -> None:
        place = self.folder / "reference"
        for name in ("train 1", *(f"{kind} 1" for kind in MEASURE)):
            code, error = self.run(self.job(name, place))
            assert code == 0, error
        two = self.folder / "reference of two"
        code, error = self.run(self.job("train 2", two))
        assert code == 0, error
        self.calls = {}
        for name in self.names():
            log = self.folder / "log"
            log.unlink(missing_ok=True)
            scratch = self.folder / "scratch"
            self.run(self.job(name, scratch), {"STRIKE_UNDER": str(scratch), "STRIKE_LOG": str(log)})
            self.calls[name] = log.stat().st_size
            shutil.rmtree(scratch)

    def names(self) -> list[str]:
        return ["train 1", "train 2", *(f"{kind} {processes}" for kind in MEASURE for processes in (1, 2))]

    def round(self, number: int) -> None:
        name, place = self.draw.choice(self.names()), self.folder / f"round {number}"
        words = self.job(name, place)
        (place / "results").mkdir(parents=True)
        stop, reader = threading.Event(), None
        if not name.startswith("train"):
            reader = threading.Thread(target=self.read, args=(place / "results", stop))
            reader.start()
        for _ in range(self.draw.randint(1, 4)):
            how = self.draw.choice(["call", "call", "moment", "full disk"])
            if how == "moment":
                code, error = self.run(words, kill_after=self.draw.uniform(1, 12))
            else:
                at = {"STRIKE_UNDER": str(place), "STRIKE_AT": str(self.draw.randint(1, self.calls[name]))}
                code, error = self.run(words, at | ({"STRIKE_ERROR": str(errno.ENOSPC)} if how == "full disk" else {}))
            self.counts[f"{how}, {name.split()[0]}"] += 1
            if how == "full disk" and code not in (0, 75):
                self.expect("No space left" in error or "no space" in error.lower(), f"{name}: {error.strip()[-300:]}")
        for _ in range(3):
            code, error = self.run(words)
            if code == 0:
                break
        self.expect(code == 0, f"{name} does not go on: {error.strip()[-300:]}")
        stop.set()
        if reader is not None:
            reader.join()
        self.compare(name, place)
        shutil.rmtree(place)

    def expect(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.faults.append(sentence)
            print("FAULT", sentence, flush=True)

    def read(self, results: Path, stop: threading.Event) -> None:
        """What a table of results would meet: no line that is broken, no measurement twice, rows that are the record's."""
        store = Store(results)
        while not stop.is_set():
            records = store.records()
            self.counts["reads"] += 1
            self.expect(not store.problems, f"a reader met {store.problems[:1]}")
            self.expect(len({record.key for record in records}) == len(records), "a reader met a measurement twice")
            for record in records:
                try:
                    store.rows(record)
                except SanbenchError as error:
                    self.expect(False, f"a reader met {error}")
            time.sleep(0.02)

    def compare(self, name: str, place: Path) -> None:
        reference = self.folder / ("reference of two" if name == "train 2" else "reference")
        if name.startswith("train"):
            for file in ("best.pt", "last.pt"):
                hashes = {weights_hash(read_checkpoint(p / "runs/job" / file)["state_dict"]) for p in (reference, place)}
                self.expect(len(hashes) == 1, f"{name}: {file} has other weights")
            left = {path.name for path in (place / "runs/job").iterdir()} - EXPECTED["runs"]
            self.expect(not left, f"{name} left {left}")
            return
        one, other = Store(reference / "results"), Store(place / "results")
        found = {record.key: record for record in other.records()}
        for key, record in found.items():
            wanted = one.find([record]).get(key)
            self.expect(wanted is not None and wanted.counts == record.counts, f"{name}: another record")
            if wanted is not None:
                self.expect(one.rows(wanted).equals(other.rows(record)), f"{name}: other rows")
        self.expect(not check(other)[1], f"{name}: {check(other)[1][:1]}")
        with other.claims():
            left = [path.name for path in (place / "results" / "work").rglob("*") if path.suffix in (".parquet", ".jsonl")]
        self.expect(not left, f"{name} left {left}")

    def flips(self, count: int) -> None:
        """Flipped bits: each is seen, or changes nothing that is measured."""
        place = self.folder / "reference"
        state = self.folder / "state"
        self.run([*self.job("train 1", state), "--epochs", "3"], {"STRIKE_UNDER": str(state), "STRIKE_AT": "60"})
        checkpoints = [place / "runs/job/best.pt", state / "runs/job/resume.pt"]
        stores = [*sorted((place / "results/records").iterdir()), *sorted((place / "results/rows").rglob("*.parquet"))]
        for number in range(count):
            path = self.draw.choice([*(p for p in checkpoints if p.is_file()), *stores])
            whole = path.read_bytes()
            broken = bytearray(whole)
            broken[self.draw.randrange(len(broken))] ^= 1 << self.draw.randrange(8)
            path.write_bytes(broken)
            try:
                self.expect(self.harmless(path, whole), f"flip {number} in {path.name} was not seen")
            finally:
                path.write_bytes(whole)
            self.counts["flips"] += 1

    def harmless(self, path: Path, whole: bytes) -> bool:
        """Whether the flip is refused, or what is read equals what was written."""
        kind = TRAINING if path.name == "resume.pt" else CHECKPOINT
        if path.suffix == ".pt":
            try:
                found = read_checkpoint(path, kind)
            except SanbenchError:
                self.counts["flips refused"] += 1
                return True
            broken = path.read_bytes()
            path.write_bytes(whole)
            same = pd.Series(str(found)).equals(pd.Series(str(read_checkpoint(path, kind))))
            path.write_bytes(broken)
            return same
        store = Store(path.parents[1] if path.suffix == ".jsonl" else path.parents[2])
        try:
            problems = check(store)[1]
        except SanbenchError:
            problems = ["refused"]
        self.counts["flips refused"] += bool(problems)
        if problems:
            return True
        records = store.records()
        broken = path.read_bytes()
        path.write_bytes(whole)
        same = Store(store.root).records() == records
        path.write_bytes(broken)
        return same


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=200)
    arguments = parser.parse_args()
    assert load_dataset("fashion10k", "test")
    ending = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), arguments.seed)
        soak.undisturbed()
        print(f"calls that can be struck at: {soak.calls}", flush=True)
        rounds = 0
        while time.monotonic() < ending:
            soak.round(rounds)
            rounds += 1
        soak.flips(arguments.flips)
        print(f"seed {arguments.seed}, {rounds} rounds: {dict(sorted(soak.counts.items()))}")
        print(f"{len(soak.faults)} faults")
        raise SystemExit(1 if soak.faults else 0)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()

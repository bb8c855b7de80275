"""Who measures what: any number of processes on any number of machines share a store's folder, and each piece of work is
claimed by one of them.

A claim is a file with the name of its owner, a process. An owner on this machine is dead as soon as its process is; one on
another machine is dead when its heartbeat, a file that it touches every few seconds, has stopped. The work of the dead is
free, and what they left half-written is removed by whoever comes next. Claims are taken under a file lock, which the system
lets go of when its process ends, however it ends; on a network file system that needs a working lock service.
"""

import json
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType

from filelock import FileLock

HEARTBEAT = 5.0  # seconds between two touches
STALE = 60.0  # seconds without one after which an owner on another machine is dead
NUMBERS = count()  # of the owners within this process


@cache
def this_machine() -> str:
    """The host's name, and the name space that its process numbers belong to: containers may share one but not the other."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return "".join(c if c.isalnum() or c == "." else "_" for c in f"{platform.node()}{space.removeprefix('pid:')}")


def start_of(pid: int) -> str | None:
    """When a process of this machine began, so that a reused number is told apart; None if there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "unknown"  # not Linux
    return None if fields[0] in "ZX" else fields[19]


def this_process() -> str:
    """MACHINE-NUMBER-BEGINNING; no part holds a `-`."""
    pid = os.getpid()
    return f"{this_machine()}-{pid}-{start_of(pid)}"


def runs_here(process: Sequence[str]) -> bool | None:
    """Whether a process, by the parts of its name, is running; None on another machine."""
    machine, pid, began = process
    return start_of(int(pid)) == began if machine == this_machine() else None


def words_of(owner: str) -> str:
    """`HOST, process 123`."""
    machine, pid = owner.split("-")[:2]
    return f"{machine.rpartition('__')[0] or machine}, process {pid}"


class Claims:
    """`with Claims(folder) as claims: names = claims.take(names)`. What was taken is released at the end.

    folder/claims/NAME holds its owner's name, folder/owners/OWNER is a heartbeat, folder/partial/PROCESS-FILE is half-written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = f"{this_process()}-{next(NUMBERS)}"
        self.ended = threading.Event()
        self.held: set[str] = set()

    @property
    def heartbeat(self) -> Path:
        return self.folder / "owners" / self.owner

    def __enter__(self) -> "Claims":
        for name in ("claims", "owners", "partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.heartbeat.touch()
        self.beating = threading.Thread(target=self._beat, daemon=True)
        self.beating.start()
        self.clean()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.beating.join()
        self.release(tuple(self.held))
        self.heartbeat.unlink(missing_ok=True)

    def take(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are this owner's now: nobody had them, or somebody who is dead."""
        alive: dict[str, bool] = {}
        taken = []
        with locked(self.folder):
            for name in names:
                owner = self._owner_of(name)
                if owner is None or owner == self.owner or not alive.setdefault(owner, self.is_alive(owner)):
                    (self.folder / "claims" / name).write_text(json.dumps(self.owner))
                    taken.append(name)
        self.held.update(taken)
        return taken

    def release(self, names: Iterable[str]) -> None:
        """Give claims back. One that was taken over, because this owner seemed dead, stays with its new owner."""
        names = list(names)
        with locked(self.folder):
            for name in names:
                if self._owner_of(name) == self.owner:
                    (self.folder / "claims" / name).unlink(missing_ok=True)
        self.held.difference_update(names)

    def living(self, prefix: str) -> list[str]:
        """The other living owners of claims whose names begin with `prefix`."""
        names = [path.name for path in (self.folder / "claims").glob(f"{prefix}*")]
        owners = {owner for owner in map(self._owner_of, names) if owner not in (None, self.owner)}
        return sorted(owner for owner in owners if owner and self.is_alive(owner))

    def holders(self) -> dict[str, str]:
        """By claim, its living owner, of this process too."""
        names = [path.name for path in (self.folder / "claims").iterdir()]
        return {name: owner for name in names if (owner := self._owner_of(name)) and self.is_alive(owner)}

    def is_alive(self, owner: str) -> bool:
        if owner == self.owner:
            return True
        path = self.folder / "owners" / owner
        running = runs_here(owner.split("-")[:3])
        return path.is_file() and running if running is not None else self._is_fresh(path)

    def _is_fresh(self, path: Path) -> bool:
        self.heartbeat.touch()  # the file system's clock, not this machine's
        try:
            return self.heartbeat.stat().st_mtime - path.stat().st_mtime < STALE
        except FileNotFoundError:
            return False

    def clean(self) -> None:
        """Remove what the dead have left: claims, heartbeats, half-written files."""
        with locked(self.folder):
            dead = [path for path in (self.folder / "owners").iterdir() if not self.is_alive(path.name)]
            names = {path.name for path in dead}
            for path in (self.folder / "claims").iterdir():
                if self._owner_of(path.name) in names:
                    path.unlink(missing_ok=True)
            for path in (self.folder / "partial").iterdir():
                running = runs_here(path.name.split("-")[:3])
                if running is False or (running is None and not self._is_fresh(path)):
                    path.unlink(missing_ok=True)
            for path in dead:
                path.unlink(missing_ok=True)

    def _owner_of(self, name: str) -> str | None:
        try:
            owner: str = json.loads((self.folder / "claims" / name).read_text())
        except (FileNotFoundError, ValueError):  # a kill may have left an empty file
            return None
        return owner

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT):
            with suppress(OSError):  # a full disk is met, and told, where results are written
                self.heartbeat.touch()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, for as short as possible."""
    with FileLock(folder / "lock"):
        yield

"""A job on a cluster: a command as a process of its own. Nothing here needs torch, which the command imports.

One handler queues a job again: that of submitit. It calls `Job.checkpoint`, which has the command save and end with 75, and the
same command goes on when the job runs again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from sanbench.errors import Interrupted, SanbenchError
from sanbench.store.claims import start_of

SAVE = 300  # seconds before its end at which Slurm tells a job
LOOK = 0.1  # seconds between two looks at the command


class Job:
    """What submitit pickles: `sanbench WORDS` as a process of its own."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words, "process": None}

    def __call__(self) -> None:
        """Raises SanbenchError where the command failed. What it saved after a signal of its own is queued again."""
        from submitit import JobEnvironment

        told = JobEnvironment._usr_sig()  # what submitit's handler heeds

        def deaf() -> None:
            signal.signal(told, signal.SIG_IGN)  # Slurm signals every process of a job, and this one is told by `checkpoint`

        command = [sys.executable, "-m", "sanbench_cli", *self.words]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=deaf)
        while (code := self.process.poll()) is None:  # `wait` would hold a lock that `checkpoint` needs
            time.sleep(LOOK)
        if code == Interrupted.exit_code:
            os.kill(os.getpid(), told)
            time.sleep(SAVE)  # submitit's handler ends this process
        if code:
            raise SanbenchError(f"sanbench {' '.join(self.words)} ended with {code}.")

    def checkpoint(self) -> Any:
        """For submitit's handler: what is queued again, after the command has saved."""
        from submitit.helpers import DelayedSubmission

        process = self.process
        if process is not None and start_of(process.pid) is not None:
            os.kill(process.pid, signal.SIGTERM)
            while start_of(process.pid) is not None:
                time.sleep(LOOK)
        return DelayedSubmission(Job(self.words))

"""Log: lines of metrics.jsonl and TensorBoard's event files."""

import importlib.util
from typing import Any

from sanbench.errors import InputError
from sanbench.runs.run import Run


class Log:
    """`log.write(line)` appends `line` to the run's metrics.jsonl; with `tensorboard` also its numbers to RUN/tensorboard."""

    def __init__(self, run: Run, tensorboard: bool, steps: int) -> None:
        self.run, self.steps = run, steps  # steps an epoch
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(run.folder / "tensorboard")

    def write(self, line: dict[str, Any]) -> None:
        self.run.append(line)
        if self.board is None:
            return
        done = (line["epoch"] - 1) * self.steps + line.get("step", self.steps)
        kind = "step" if "step" in line else "epoch"
        for name in sorted(line.keys() - {"epoch", "step"}):
            self.board.add_scalar(f"{kind}/{name}", line[name], done)
        self.board.flush()


def check_tensorboard(wanted: bool) -> None:
    """Raises InputError if TensorBoard is wanted and not installed."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard is not accepted here: tensorboard is missing, pip install 'sanbench[tensorboard]'.")

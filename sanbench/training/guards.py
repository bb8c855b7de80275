"""Faults that end a run: losses that are not finite, too many images that cannot be read."""

import torch
from torch import Tensor

from sanbench.data import Images
from sanbench.runs.run import Run
from sanbench.training.state import TrainState

MAY_SKIP = 0.001  # share of the images


class FaultCheck:
    """Keeps the losses since the last `check` on the device, so that the host waits for it only there."""

    def __init__(self, images: Images, run: Run) -> None:
        self.images, self.run = images, run
        self.recent: list[tuple[int, Tensor, list[Tensor]]] = []

    def add(self, step: int, loss: Tensor, indices: list[Tensor]) -> None:
        self.recent.append((step, loss, indices))

    def check(self, state: TrainState) -> None:
        """Sum the counts of all processes, which all call this. Raises SanbenchError on all of them if one has a fault."""
        state.reduce_totals()
        state.group.raise_if_any(self.not_finite(state) or self.skipped(state))
        self.recent.clear()

    def not_finite(self, state: TrainState) -> str | None:
        if not self.recent:
            return None
        finite = torch.stack([loss for _, loss, _ in self.recent]).isfinite().tolist()
        if all(finite):
            return None
        step, _, indices = self.recent[finite.index(False)]
        paths = ", ".join(self.images.locate(index) for part in indices for index in part.tolist())
        kept = f"the last good checkpoint is {self.run.resume}" if self.run.resume.is_file() else "there is no checkpoint yet"
        return (
            f"The loss is not finite at epoch {state.epoch + 1}, step {step + 1}: lower --lr, or look at the images; "
            f"{kept}. The batch: {paths}."
        )

    def skipped(self, state: TrainState) -> str | None:
        count = int(state.totals[3])
        if count <= MAY_SKIP * len(self.images):
            return None
        return (
            f"{count} of {len(self.images)} images cannot be read in epoch {state.epoch + 1}: "
            f"--skip-bad-images accepts up to {MAY_SKIP:.1%}."
        )

"""What a run tells while it goes: records for log.jsonl and TensorBoard, and figures for a progress bar.

A record covers the steps since the one before it: mean loss per element and mean gradient norm of the good steps, and
the rate. The sums live in the checkpoint (`Progress`), so a resumed run writes the same records as one that was never
killed, but for the seconds.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoguidance.train.checkpoint import Progress
from autoguidance.train.folder import RunFolder
from autoguidance.train.step import StepResult

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

_REPORT_SECONDS = 0.25


def open_board(folder: Path, purge_from: int) -> Any:
    """A TensorBoard writer in `folder`/tensorboard, or None where TensorBoard is not installed.

    Args:
        purge_from: images; points from there on, of a session that was killed, are hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=purge_from or None)


class Recorder:
    """Counts steps into `progress`, and writes and reports what they gave.

    Args:
        folder: the run folder; None in a process that does not write.
        progress: the run's counters; this object changes them.
        total: images in the whole run.
        log_images: images between two records.
        report: the caller's progress callback, or None.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        progress: Progress,
        *,
        total: int,
        log_images: int,
        report: ProgressCallback | None,
    ) -> None:
        self.folder = folder
        self.progress = progress
        self.total = total
        self.log_images = log_images
        self.report = report
        self._board = open_board(folder.path, progress.num_images) if folder else None
        self._last = time.monotonic()
        self._reported = (self._last, progress.num_images)

    def count(self, result: StepResult, batch_size: int) -> None:
        """Take in one step of batch_size images; write a record and report where it is time."""
        progress = self.progress
        now = time.monotonic()
        progress.seconds += now - self._last
        self._last = now
        before = progress.num_images
        progress.num_images += batch_size
        if result.skipped:
            progress.skipped += 1
        else:
            progress.loss_sum += result.loss
            progress.grad_norm_sum += result.grad_norm
            progress.num_terms += 1
        since, images = self._reported
        if self.report is not None and (now - since >= _REPORT_SECONDS or progress.num_images >= self.total):
            figures = {"images/s": (progress.num_images - images) / max(now - since, 1e-9), "loss": result.loss}
            if progress.skipped:
                figures["skipped"] = progress.skipped
            self.report(min(progress.num_images, self.total), self.total, figures)
            self._reported = (now, progress.num_images)
        if before // self.log_images != progress.num_images // self.log_images or progress.num_images >= self.total:
            self._write(result.learning_rate)

    def _write(self, rate: float) -> None:
        progress = self.progress
        seconds = progress.seconds - progress.logged_seconds
        terms = progress.num_terms
        record = {
            "images": progress.num_images,
            "loss": progress.loss_sum / terms if terms else None,
            "learning_rate": rate,
            "grad_norm": progress.grad_norm_sum / terms if terms else None,
            "images_per_second": (progress.num_images - progress.logged_images) / seconds if seconds > 0 else None,
            "seconds": progress.seconds,
            "skipped": progress.skipped,
        }
        if self.folder is not None:
            self.folder.log(record)
        if self._board is not None:
            for name, value in record.items():
                if value is not None and name != "images":
                    self._board.add_scalar(f"train/{name}", value, progress.num_images)
        progress.loss_sum = progress.grad_norm_sum = 0.0
        progress.num_terms = 0
        progress.logged_images = progress.num_images
        progress.logged_seconds = progress.seconds

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()

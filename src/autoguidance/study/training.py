"""Train several runs at once, each in a process of its own.

Small networks gain nothing from a second thread, so each process takes one core. A process opens the data by name,
trains into its run folder (which resumes by itself), and is watched through the folder's log. If the parent dies, the
processes end themselves.
"""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.open import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import train_classifier
from autoguidance.storage import read_json_lines
from autoguidance.train.config import TrainConfig
from autoguidance.train.folder import read_run
from autoguidance.train.loop import train
from autoguidance.tune import begin_worker, worker_context
from autoguidance.zoo import list_snapshots

ProgressCallback = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: a network to train, or (config None) the classifier.

    Attributes:
        name: for messages.
        out: run folder, or the classifier's file.
        config: of the network.
    """

    name: str
    out: Path
    config: TrainConfig | None = None


def run_jobs(
    jobs: Sequence[Job],
    data: str,
    *,
    resolution: int | None,
    device: torch.device,
    num_processes: int,
    seed: int,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Run all jobs, at most num_processes at a time, in the order given; returns seconds per job.

    Raises: UserError with a job's own message where it failed; the others are stopped (they resume when called again).
    """
    context = worker_context(device)
    threads = max(1, torch.get_num_threads() // num_processes) if device.type == "cpu" else torch.get_num_threads()
    waiting = list(jobs)
    running: dict[str, tuple[Any, Any, float]] = {}
    seconds: dict[str, float] = {}
    total = sum(job.config.num_images for job in jobs if job.config is not None)
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_run_job,
                    args=(job, data, resolution, str(device), threads, seed, sender, dict(os.environ)),
                )
                process.start()
                sender.close()
                running[job.name] = (process, receiver, time.monotonic())
            time.sleep(0.2)
            for name, (process, receiver, start) in list(running.items()):
                if process.is_alive():
                    continue
                message = _outcome(process.exitcode, receiver)
                if message is not None:
                    if message.startswith("Traceback"):
                        raise RuntimeError(f"{name}: {message}")
                    raise UserError(f"{name}: {message}")
                seconds[name] = time.monotonic() - start
                del running[name]
            if progress is not None:
                seen = {job.name: _images_seen(job.out) for job in jobs if job.config is not None}
                figures = _figures(jobs[0].out)
                progress(min(total, sum(seen.values())), total, figures)
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()
    return seconds


def is_finished(run: Path, config: TrainConfig, fingerprint: str) -> bool:
    """Whether a folder holds a finished training with these options on the data of this fingerprint."""
    if not (run / "config.json").exists():
        return False
    known, content = read_run(run)
    if known.differences(config) or content["data"].get("fingerprint") != fingerprint:
        return False
    return _images_seen(run) >= config.num_images and list_snapshots(run)[-1].num_images >= config.num_images


def _outcome(exit_code: int | None, receiver: Any) -> str | None:
    """What a process that is gone left: None for success, or what went wrong."""
    try:
        if receiver.poll():
            return receiver.recv()
    except EOFError:  # it was killed before it could say anything; its end of the pipe is closed
        pass
    return f"its process ended with code {exit_code} (out of memory?); the same command goes on from there"


def _last_record(run: Path) -> dict[str, Any]:
    records = read_json_lines(run / "log.jsonl")
    return records[-1] if records else {}


def _images_seen(run: Path) -> int:
    return int(_last_record(run).get("images", 0))


def _figures(run: Path) -> dict[str, Any]:
    record = _last_record(run)
    shown = {"loss": record.get("loss"), "main images/s": record.get("images_per_second")}
    return {name: float(value) for name, value in shown.items() if isinstance(value, int | float)}


def _run_job(
    job: Job,
    data: str,
    resolution: int | None,
    device: str,
    threads: int,
    seed: int,
    sender: Any,
    environment: dict[str, str],
) -> None:
    begin_worker(environment)
    torch.set_num_threads(threads)
    try:
        source = open_data(data, resolution=resolution)
        if job.config is None:
            if not job.out.exists():
                train_classifier(source, job.out, seed=seed, device=device)
        else:
            train(job.config, source, job.out, device=device)
        sender.send(None)
    except UserError as error:
        sender.send(str(error))
    except Exception:
        sender.send(traceback.format_exc())

"""Reads untrusted files in a child process that watches itself, and reports what each file made it do.

The child imports everything first. Then, for each file in turn, it arms an audit hook (PEP 578), resets the peak of its resident
memory, starts a timer that kills it, and calls the reader. Whatever the interpreter does beyond opening
that one file for reading is reported: the hook sees exec, compile, import, open, subprocesses, sockets, file operations, ctypes,
unpickling of classes and all else that Python announces. A child that dies (a signal, no memory) counts as a report on the file
that it was reading, and a new child continues after it.

`naive` reads with Python's own unpickler, and `trusting` executes the source texts too, as the reference program does: they show that
the files are live and that the watching works.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ALLOWANCE = 256 << 20  # bytes beyond the file's size
SECONDS = 5.0  # of processor time
DEADLINE = 12.0  # of wall time, after which the child is killed
SAFETY = 2 << 30  # bytes of address space beyond the file's size, so that a bomb does not take the machine with it
HARMLESS = ("mmap.__new__", "builtins.id", "object.__getattr__", "sys._getframe")
HERE = Path(__file__).resolve()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What reading one file did.

    Attributes:
        outcome: "read", or the name of the exception's class, or "died: ...".
        user_error: the exception is a UserError.
        message: of the exception.
        events: audit events other than opening the file for reading, as text.
        seconds: of processor time (the machine may be shared; a reader that waits is killed at the deadline).
        peak_bytes: growth of resident memory at its peak.
        file_bytes: size of the file.
        canary: the file made a file CANARY.
        detail: what was read: number of tensors and elements.
    """

    outcome: str
    user_error: bool = False
    message: str = ""
    events: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0
    file_bytes: int = 0
    canary: bool = False
    detail: dict[str, Any] = field(default_factory=dict)


def examine(paths: Sequence[Path], readers: Sequence[str], *, folder: Path, deadline: float = DEADLINE) -> list[Report]:
    """Read files in a child process.

    Args:
        paths: the files.
        readers: per file "network", "assemble" (read, then build the network), "reference", "naive", "trusting".
        folder: the child's working folder, also first on its import path. A file CANARY in it is noted and removed.
        deadline: seconds after which the child is killed.
    """
    reports: list[Report] = []
    while len(reports) < len(paths):
        start = len(reports)
        jobs = {
            "deadline": deadline,
            "jobs": [[str(path), kind] for path, kind in zip(paths[start:], readers[start:], strict=True)],
        }
        (folder / "jobs.json").write_text(json.dumps(jobs))
        command = [sys.executable, "-W", "error::RuntimeWarning", str(HERE), str(folder / "jobs.json")]
        child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        lines = [line.removeprefix("REPORT ") for line in child.stdout.splitlines() if line.startswith("REPORT ")]
        for line in lines:
            content = json.loads(line)
            reports.append(Report(**{**content, "events": tuple(content["events"])}))
        if len(reports) < len(paths):
            if not lines and "READY" not in child.stdout:
                raise RuntimeError(f"the child did not start: {child.stderr}")
            reports.append(Report(outcome=f"died: {child.returncode}", message=child.stderr[-500:]))
    return reports


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


class _Watch:
    """The audit hook; it cannot be removed, only disarmed."""

    def __init__(self) -> None:
        self.armed, self.target, self.events = False, "", []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or event in HARMLESS:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)) and isinstance(arguments[2], int):
            written = arguments[2] & (1 | 2 | 0o100 | 0o1000 | 0o2000)  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND
            if not written and arguments[0] == self.target:
                return
        if event == "compile" and self._is_literal():
            return
        self.events.append(f"{event} {str(arguments)[:160]}")

    def _is_literal(self) -> bool:
        # numpy reads an array's header with ast.literal_eval, which parses and runs nothing.
        frame = sys._getframe(2)
        names = []
        while frame is not None and len(names) < 4:
            names.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
            frame = frame.f_back
        return names[:2] == [("ast.py", "parse"), ("ast.py", "literal_eval")] and self.target.endswith(".npz")


def _readers() -> dict[str, Any]:
    import pickle
    import types
    from functools import partial

    from autoguidance.interop.edm2 import read_network, read_reference
    from autoguidance.models import assemble_model

    def network(path: str) -> dict[str, Any]:
        _, weights = read_network(path)
        return {"tensors": len(weights), "elements": sum(tensor.numel() for tensor in weights.values())}

    def assemble(path: str) -> dict[str, Any]:
        info, weights = read_network(path)
        model = assemble_model(info, weights)
        return {"tensors": len(weights), "elements": sum(tensor.numel() for tensor in model.state_dict().values())}

    def reference(path: str) -> dict[str, Any]:
        read_reference(path)
        return {}

    def naive(path: str, *, trusting: bool = False) -> dict[str, Any]:
        def reconstruct(meta: Any) -> Any:
            if trusting:
                exec(meta["module_src"], {})
            return types.SimpleNamespace()

        persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
        vars(persistence)["_reconstruct_persistent_obj"] = reconstruct
        vars(util)["EasyDict"] = type("EasyDict", (dict,), {})
        sys.modules.update(
            {
                "torch_utils": types.ModuleType("torch_utils"),
                "torch_utils.persistence": persistence,
                "dnnlib": types.ModuleType("dnnlib"),
                "dnnlib.util": util,
            }
        )
        with open(path, "rb") as file:  # noqa: PTH123 (its own audit events only)
            pickle.load(file)
        return {}

    return {
        "network": network,
        "assemble": assemble,
        "reference": reference,
        "naive": naive,
        "trusting": partial(naive, trusting=True),
    }


def _child(jobs_file: str) -> None:
    import gc
    import resource
    import signal
    import time

    content = json.loads(Path(jobs_file).read_text())
    import torch

    from autoguidance.errors import UserError

    torch.set_num_threads(1)
    readers = _readers()
    sys.path.insert(0, str(Path.cwd()))
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()  # else every collection below walks through all of torch
    watch = _Watch()
    print("READY", flush=True)  # noqa: T201
    for path, kind in content["jobs"]:
        gc.collect()
        gc.freeze()  # what was imported since
        size = Path(path).stat().st_size
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, peak_before = _memory("VmRSS"), _memory("VmHWM")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + size + SAFETY, hard))
        signal.setitimer(signal.ITIMER_REAL, content["deadline"])
        outcome, user_error, message, detail = "read", False, "", {}
        watch.events, watch.target = [], path
        start = time.process_time()
        watch.armed = True
        try:
            detail = readers[kind](path)
        except BaseException as error:
            watch.armed = False
            outcome, user_error, message = type(error).__name__, isinstance(error, UserError), str(error)
            del error
        watch.armed = False
        seconds = time.process_time() - start
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        peak = _memory("VmHWM")
        canary = Path("CANARY")
        report = Report(
            canary=canary.exists(),
            outcome=outcome,
            user_error=user_error,
            message=message,
            events=tuple(watch.events),
            seconds=seconds,
            peak_bytes=peak - before if peak > peak_before else 0,
            file_bytes=size,
            detail=detail,
        )
        canary.unlink(missing_ok=True)
        sys.modules.pop("canary_module", None)
        sys.stdout.write(f"\nREPORT {json.dumps(asdict(report))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _child(sys.argv[1])

"""Networks recorded once as CUDA graphs and replayed: for small networks a GPU waits for Python, not the other way round.

Problem: a network of a few million parameters is several hundred kernels of a few microseconds each. Started one by one
from Python they take ten times as long as they run. A CUDA graph starts them all at once; the kernels, their order and so
the results are the same.

What a graph needs: the same shapes, the same addresses (inputs are copied to where the recording read them), and weights
that have not changed. So a recording belongs to a key of all that, is made when a key is seen for the third time, and is left out
where it cannot work: while gradients are needed, in training mode, for large networks (whose kernels are long, and whose
activations a recording would hold on to), and where AUTOGUIDANCE_CUDA_GRAPHS=0.

Reference: NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs".
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

MAX_PARAMETERS = 1 << 25
"""Networks with more are not recorded: their kernels take longer than starting them."""
_MAX_RECORDINGS = 4
_SEEN_BEFORE = 2
_WARM_UPS = 3

logger = logging.getLogger(__name__)


def graphs_enabled() -> bool:
    """Whether the user has not switched recordings off."""
    return os.environ.get("AUTOGUIDANCE_CUDA_GRAPHS", "1") != "0"


@lru_cache(maxsize=1)
def _shared_pool() -> Any:
    """One pool of memory for all networks of this process: a search keeps a dozen of them, and they run one after the other."""
    return torch.cuda.graph_pool_handle()


class Recording:
    """A function of CUDA tensors as a CUDA graph.

    Args:
        function: called a few times to warm up and once to record; must do its work on the current stream, without waiting for
            the GPU and without copies from the CPU.
        inputs: examples; their shapes and dtypes are those of every later call.
        pool: memory pool that recordings share which are never replayed at the same time, and whose results are copied before the
            next replay; None: its own.

    Raises: RuntimeError where the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., Tensor | None], inputs: Sequence[Tensor], pool: Any = None) -> None:
        self._inputs = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may prepare the next batch meanwhile; its copies are none of this recording's business.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        """Replay on these inputs. The result lies where the next replay will write: copy it to keep it."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output


class RecordingCache:
    """The recordings of one network, at most four, the least recently used one given up first. A copy of it is empty."""

    def __init__(self) -> None:
        self._recordings: OrderedDict[Hashable, tuple[Recording, object]] = OrderedDict()
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._failed = False

    def __deepcopy__(self, memo: object) -> "RecordingCache":
        return RecordingCache()

    def __reduce__(self) -> tuple[type["RecordingCache"], tuple[()]]:
        return RecordingCache, ()

    def call(
        self, key: Hashable, function: Callable[..., Tensor], inputs: Sequence[Tensor], keep: Callable[[], object]
    ) -> Tensor:
        """function(*inputs), by a recording where there is one for the key, or where it is time to make one.

        Args:
            key: everything besides the inputs' values that the result depends on.
            function: see `Recording`.
            inputs: on one CUDA device.
            keep: gives what the recording reads beside its inputs, to be kept alive with it.
        """
        if self._failed:
            return function(*inputs)
        found = self._recordings.get(key)
        if found is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            while len(self._seen) > 4 * _MAX_RECORDINGS:
                self._seen.popitem(last=False)
            if self._seen[key] <= _SEEN_BEFORE:
                return function(*inputs)
            found = self._record(function, inputs, keep)
            if found is None:
                return function(*inputs)
            self._recordings[key] = found
            while len(self._recordings) > _MAX_RECORDINGS:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        result = found[0](*inputs)
        assert result is not None
        return result.clone()

    def _record(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], keep: Callable[[], object]
    ) -> tuple[Recording, object] | None:
        try:
            return Recording(function, inputs, _shared_pool()), keep()
        except RuntimeError as error:  # memory, or something that cannot be recorded: slower, but as right
            self._failed = True
            logger.warning("not recorded as a CUDA graph (slower): %s", str(error).splitlines()[0])
            return None

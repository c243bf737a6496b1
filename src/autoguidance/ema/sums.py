"""Weighted sums of many networks' weights, for many sets of weights in one pass.

Problem: a post-hoc average is sum_i X[i, j] theta_i over up to hundreds of snapshots i, for dozens of wanted widths j. One
snapshot is one network; holding them all is out of the question, and so is reading them once per width. So the sums of
all widths are kept, and the snapshots are added group by group, tensor by tensor: memory is one float32 network per
width, and what the readers of one group hold.

Rounding: for narrow widths the X are large and of alternating signs (sum |X| is 142 for width 0.010 from 64 x 2
snapshots). So a group is combined in float64 and the sum is rounded to float32 once per group; the groups are the
snapshots of one time, whose X cancel each other most. Relative error there, at worst: 6.5e-7; plain float32 sums: 2.6e-6.

    sum[j] <- float32( float64(sum[j]) + sum_{i in group} X[i, j] theta_i )

Every step is elementwise in a fixed order, so that a pass that was stopped and continued gives the same bits.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.errors import UserError

_CHUNK = 1 << 14  # elements at a time: the float64 copies of one chunk of all outputs stay in the cache


class WeightedSums:
    """Sums of weighted snapshots, one per output, in float32.

    Args:
        num_outputs: number of sums.

    Attributes:
        sums: per averaged tensor its sums, float32 [outputs, *shape].
        copied: tensors that are not averaged, as the last added snapshot has them.
        dtypes: in which types the last added snapshot had the averaged ones.
    """

    def __init__(self, num_outputs: int) -> None:
        self.num_outputs = num_outputs
        self.sums: dict[str, Tensor] = {}
        self.copied: dict[str, Tensor] = {}
        self.dtypes: set[torch.dtype] = set()

    @torch.no_grad()
    def add(
        self,
        snapshots: Sequence[Mapping[str, Tensor]],
        weights: Float[np.ndarray, "snapshots outputs"],
        *,
        labels: Sequence[str],
        is_buffer: Callable[[str], bool] = lambda name: False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Add a group of snapshots. Where this raises, the sums are of no more use.

        Args:
            snapshots: state dicts; each tensor is asked for once, in turn, so a lazy mapping costs one tensor at a time.
            weights: X, float64.
            labels: per snapshot what to call it in an error.
            is_buffer: which names are copied and not summed; tensors that are not floating-point never are.
            progress: called with the bytes of every tensor read.

        Raises: UserError where a snapshot has other tensors than the first one had, or values that are not finite.
        """
        rows = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float64))
        known = self.sums.keys() | self.copied.keys()
        for snapshot, label in zip(snapshots, labels, strict=True):
            names = known or set(snapshots[0])
            if set(snapshot) != names:
                raise _other_network(label, min(set(snapshot) ^ names))
        self.dtypes = set()
        for name in snapshots[0]:
            values = []
            for snapshot, label in zip(snapshots, labels, strict=True):
                values.append(snapshot[name])
                if values[-1].shape != self._shape(name, values[0]):
                    raise _other_network(label, name)
            if is_buffer(name) or not values[-1].is_floating_point():
                self.copied[name] = values[-1].clone()
            else:
                if name not in self.sums:
                    self.sums[name] = torch.zeros((self.num_outputs, *values[0].shape))
                self._accumulate(name, values, rows, labels)
                self.dtypes.add(values[-1].dtype)
            if progress is not None:
                progress(sum(value.nbytes for value in values))

    def _shape(self, name: str, first: Tensor) -> torch.Size:
        if name in self.sums:
            return self.sums[name].shape[1:]
        return self.copied.get(name, first).shape

    def _accumulate(self, name: str, values: Sequence[Tensor], rows: Tensor, labels: Sequence[str]) -> None:
        sums = self.sums[name].view(self.num_outputs, -1)
        flat = [value.reshape(-1) for value in values]
        for start in range(0, sums.shape[1], _CHUNK):
            part = sums[:, start : start + _CHUNK]
            exact = part.double()
            for value, row, label in zip(flat, rows, labels, strict=True):
                piece = value[start : start + _CHUNK].double()
                if not bool(torch.isfinite(piece).all()):
                    raise UserError(f"{label}: {name} holds values that are not finite; the file is damaged")
                exact.addr_(row, piece)
            part.copy_(exact)

    def output(self, index: int) -> dict[str, Tensor]:
        """The state dict of one output: its sums (views) and the copied tensors."""
        return {**{name: value[index] for name, value in self.sums.items()}, **self.copied}


def _other_network(label: str, name: str) -> UserError:
    return UserError(f"{label} is of another network than the snapshots before it ({name} differs); keep them apart")

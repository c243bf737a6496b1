"""When and how fast: the learning rate after n images, and the times at which snapshots are written.

The rate does not depend on how long the run will be (a run can always be made longer): a linear ramp-up over
`rampup_images`, then constant, then decay with the square root of the images seen:

    lr(n) = ref * min(n / rampup, 1) / sqrt(max(n / (ref_batches * batch), 1))

n counts the images before the step, so the first step's rate is 0.

Reference: Karras et al. 2024, arXiv 2312.02696, Eq. 67 and Section 3.4.
"""

import math

from autoguidance.train.config import TrainConfig


def learning_rate(config: TrainConfig, num_images: int) -> float:
    """Rate of the step that begins after `num_images` images."""
    rate = config.learning_rate / math.sqrt(max(num_images / (config.ref_batches * config.batch_size), 1.0))
    return rate * min(num_images / config.rampup_images, 1.0) if config.rampup_images else rate


def num_steps(num_images: int, batch_size: int) -> int:
    """Whole steps that show at least `num_images` images."""
    return -(-num_images // batch_size)


def snapshot_times(num_images: int, batch_size: int, num_snapshots: int = 24) -> tuple[int, ...]:
    """Images after which both averages are stored: dense early, regular later, and the end; whole steps, ascending.

    From an eighth of the run on there is one every 1/num_snapshots of it; before that, two per doubling from 1/64 on.
    The regular part carries post-hoc reconstruction (the paper stores about as many); the early part holds candidates
    for guides, which are best taken between 1/16 and 1/4 of a run, and costs only half a dozen files more. With 24:
    28 times.
    """
    early = [2 ** (-k / 2) for k in range(12, 6, -1)]
    regular = [i / num_snapshots for i in range(1, num_snapshots + 1) if i * 8 >= num_snapshots]
    total = num_steps(num_images, batch_size)
    steps = {round(share * total) for share in [*early, 1 / 8, *regular]}
    return tuple(step * batch_size for step in sorted(steps) if step)

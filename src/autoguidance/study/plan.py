"""How to spend the minutes: network sizes, images to train on, samples to measure with; from a short speed test.

The time is divided into training (about half), searching and the final comparison. Training runs in parallel: the
main model on one core; classifier, guide and unconditional model on the other. Small data has a second limit, see
`most_training_images`.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from autoguidance.data.encoders import make_encoder
from autoguidance.data.source import ImageSource
from autoguidance.diffusion.loss import edm_loss
from autoguidance.errors import UserError
from autoguidance.models import Precond, build_model
from autoguidance.sample import Heun, Solver
from autoguidance.train.config import TrainConfig
from autoguidance.train.presets import auto_preset, resolve, smaller
from autoguidance.tune.policy import rung_counts

DEFAULT_MINUTES = {"digits": 6.5}
OTHER_MINUTES = 60.0
GUIDE_SHARE = 1 / 16
EMA_STDS = (0.05, 0.1, 0.2)
"""Averages stored while training. The search likes wide ones in guides; two narrow ones cannot represent them at early times."""
METHOD_SHARES = {"unguided": 0.05, "cfg": 0.15, "cfg+interval": 0.25, "autoguidance": 0.55}
"""Of the search. `cfg+interval` starts from what `cfg` found, so both kinds of guidance get about as many settings."""
_LEAST_MEASUREMENTS = {"unguided": 2, "cfg": 4, "cfg+interval": 4, "autoguidance": 7}
_MOST_MEASUREMENTS = {"unguided": 6, "cfg": 20, "cfg+interval": 25, "autoguidance": 40}
"""Images of a method's search, in full measurements; most of them are spent on settings that a part of the images rules out."""
_LEAST_IMAGES = 256  # of a full measurement while searching
_ENOUGH_IMAGES = 1000  # a repeat of the final comparison
SOLVERS: tuple[Solver, ...] = (Heun(num_steps=12), Heun(num_steps=8, sigma_min=0.01, sigma_max=20))
"""Of all measurements. On data this small more than 12 steps change the distance by less than its spread; where the time does not suffice
for 1,000 images a repeat, 8 steps over the levels that matter lose 4 % (CIFAR-10) and save a third."""
_FEWEST_STEPS = 1000
"""Training steps below which a CPU takes `small` in place of `base`, which after 640 (in a fifth less time) was 19 % worse, and learns a
quarter fewer images a second (docs/log.md; longer was not tried)."""
_TRAIN_SHARE, _SEARCH_SHARE = 0.45, 0.6  # of the whole; of what is left after training
_WORKER_START_SECONDS = 8.0  # a new process imports torch and opens the data


def most_training_images(num_images: int, batch_size: int) -> int:
    """Most images that the main model is trained for on a set of `num_images`, however many minutes there are.

    A network that sees each image too often memorises it. Even before that, samples that lie closer to the training set
    than new real images would leave nothing that a distance to this set could show (docs/log.md: on 1,797 digits
    unguided samples get there at about 55 passes, and guided ones long before). 28 passes up to 2,000 images; more in
    proportion beyond, where 60 minutes on a CPU do not get that far and nothing was measured; at least 390 steps.
    """
    passes = 28 * max(1.0, num_images / 2000)
    return max(int(passes * num_images), 390 * batch_size)


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What to train.

    Attributes:
        preset, guide_preset: sizes of main and of guide (and unconditional) network.
        main_images, guide_images, unconditional_images: training lengths; 0: not trained.
        training_rate: images/s of main in the speed test, on one process.
        evaluation_rates: evaluations/s of the main and of the guide-sized network, on one process.
    """

    preset: str
    guide_preset: str
    main_images: int
    guide_images: int
    unconditional_images: int
    training_rate: float
    evaluation_rates: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """How to measure.

    Attributes:
        search_counts: samples per setting while searching, by rung (see `tune.policy`).
        search_budget: samples per method.
        num_images, repeats: samples per repeat of the final comparison, and how many repeats.
        solver: of every measurement, as `Solver.describe`.
    """

    search_counts: tuple[int, ...]
    search_budget: dict[str, int]
    num_images: int
    repeats: int
    solver: dict[str, Any] = field(default_factory=lambda: SOLVERS[0].describe())


def training_configs(plan: TrainPlan, source: ImageSource, seed: int, *, on_gpu: bool) -> dict[str, TrainConfig]:
    """The runs to train, by name. Each has a seed of its own, so that guide and main are independent."""

    def config(preset: str, images: int, offset: int, **changes: Any) -> TrainConfig:
        dtype = "bfloat16" if on_gpu else None
        return resolve(
            preset,
            source,
            num_images=images,
            seed=3 * seed + offset,
            dtype=dtype,
            on_gpu=on_gpu,
            ema_stds=EMA_STDS,
            **changes,
        )

    configs = {
        "main": config(plan.preset, plan.main_images, 0),
        "guide": config(plan.guide_preset, plan.guide_images, 1, num_snapshots=8),
    }
    if plan.unconditional_images:
        configs["unconditional"] = config(plan.guide_preset, plan.unconditional_images, 2, unconditional=True)
    return configs


def plan_training(
    source: ImageSource,
    minutes: float,
    *,
    device: torch.device,
    preset: str | None = None,
    seed: int = 0,
) -> TrainPlan:
    """Choose sizes and lengths for a budget of `minutes`; takes a few seconds of speed test.

    Raises: UserError where the budget is not positive or too small to train anything.
    """
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes}: give a positive number of minutes")
    on_gpu = device.type == "cuda"
    # Two busy cores share caches and memory: on the machines seen each reaches about 85 % of what it does alone.
    slowdown = 1.0 if on_gpu else 0.85
    seconds = _TRAIN_SHARE * minutes * 60 * slowdown

    def speed(name: str) -> tuple[float, float]:
        return _speed(resolve(name, source, seed=seed, on_gpu=on_gpu), source, device)

    name = preset or auto_preset(source.resolution, source.channels, on_gpu=on_gpu)
    train_rate, main_rate = speed(name)
    guide_name = smaller(name)
    small_train_rate, small_rate = speed(guide_name)
    batch = resolve(name, source, on_gpu=on_gpu).batch_size
    if preset is None and not on_gpu and name == "base" and train_rate * seconds < _FEWEST_STEPS * batch:
        name, train_rate, main_rate = guide_name, small_train_rate, small_rate
        guide_name = smaller(name)
        small_train_rate, small_rate = speed(guide_name)
    if on_gpu:  # one after the other on one device
        relative = 1 + (train_rate / small_train_rate) * (1 + GUIDE_SHARE)
        fits = train_rate * seconds / relative
    else:
        fits = train_rate * seconds
    batch = resolve(name, source, on_gpu=on_gpu).batch_size
    most = min(int(fits), most_training_images(source.num_images, batch))
    main_images = max(most // batch, 32) * batch
    guide_images = max(round(main_images * GUIDE_SHARE / batch), 8) * batch
    # The second core has as long as the main model takes; a third of that is kept for the classifier.
    unconditional = main_images
    if not on_gpu:
        spare = main_images / train_rate * 0.67
        unconditional = min(main_images, max(int(spare * small_train_rate - guide_images) // batch, 32) * batch)
    return TrainPlan(
        preset=name,
        guide_preset=guide_name,
        main_images=main_images,
        guide_images=guide_images,
        unconditional_images=unconditional if source.num_classes else 0,
        training_rate=train_rate,
        evaluation_rates=(main_rate, small_rate),
    )


def plan_measuring(
    plan: TrainPlan,
    source: ImageSource,
    seconds_left: float,
    train_seconds: float,
    *,
    num_features: int,
    num_processes: int,
    on_gpu: bool,
) -> MeasurePlan:
    """Divide the time that is left between search and final comparison; never less than a comparison that means something.

    Args:
        plan: what was trained, with the speeds that were expected.
        source: the images.
        seconds_left: of the budget.
        train_seconds: what training the main model took; where it was slower than expected (a busy machine), so will be the rest.
        num_features: of the network that measures.
        num_processes, on_gpu: who measures.
    """
    expected = plan.main_images / plan.training_rate
    speed = num_processes * max(0.2, min(1.0 if on_gpu else 0.85, expected / max(train_seconds, 1e-3)))
    seconds_left -= 2 * _WORKER_START_SECONDS
    final_seconds = (1 - _SEARCH_SHARE) * seconds_left * speed
    most = max(_ENOUGH_IMAGES, min(10_000, source.num_images // 2))
    repeats = 3

    def seconds_per_image(solver: Solver) -> dict[str, float]:
        main, small = ((2 * solver.num_steps - 1) / rate for rate in plan.evaluation_rates)
        cost = {"unguided": main, "cfg": main + small, "cfg+interval": main + 0.6 * small, "autoguidance": 2 * main}
        return cost if source.num_classes else {method: cost[method] for method in ("unguided", "autoguidance")}

    def fits(solver: Solver) -> float:
        return final_seconds / (repeats * sum(seconds_per_image(solver).values()))

    solver = next((solver for solver in SOLVERS if fits(solver) >= _ENOUGH_IMAGES), SOLVERS[-1])
    cost = seconds_per_image(solver)
    num_images = round(min(most, max(128, fits(solver))))
    search_seconds = _SEARCH_SHARE * seconds_left * speed
    shares = {method: METHOD_SHARES[method] / sum(METHOD_SHARES[m] for m in cost) for method in cost}
    samples = {method: int(search_seconds * share / cost[method]) for method, share in shares.items()}
    # Few settings measured well beat many measured badly, on a few hundred images the noise chooses; but there must be enough of them.
    full = min(num_images, *(samples[method] // _LEAST_MEASUREMENTS[method] for method in cost))
    counts = rung_counts(max(_LEAST_IMAGES, full - full % 64), num_features)
    budget = {
        method: counts[-1] * max(_LEAST_MEASUREMENTS[method], min(_MOST_MEASUREMENTS[method], count // counts[-1]))
        for method, count in samples.items()
    }
    return MeasurePlan(
        search_counts=counts,
        search_budget=budget,
        num_images=num_images,
        repeats=repeats,
        solver=solver.describe(),
    )


def to_json(plan: TrainPlan | MeasurePlan) -> dict[str, Any]:
    """A plan as JSON."""
    return asdict(plan)


def _speed(config: TrainConfig, source: ImageSource, device: torch.device) -> tuple[float, float]:
    """(training images/s, evaluations/s) of a network on one process with one thread (on a CPU)."""
    encoder = make_encoder(config.encoder)
    network = config.network.keywords(
        img_resolution=encoder.img_resolution,
        img_channels=encoder.img_channels,
        num_classes=source.num_classes,
        use_fp16=False,
    )
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = build_model(network).to(device)
        if device.type == "cpu":
            torch.set_num_threads(1)
        try:
            return _rate(model, config.batch_size, True), _rate(model, 64, False)
        finally:
            torch.set_num_threads(threads)


def _rate(model: Precond, batch: int, training: bool, seconds: float = 1.0) -> float:
    device = model.device
    x = torch.randn(batch, model.img_channels, model.img_resolution, model.img_resolution, device=device)
    labels = torch.zeros(batch, model.num_classes, device=device) if model.num_classes else None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model.train(training)

    def once() -> None:
        if training:
            loss = edm_loss(
                model, x, labels, torch.randn(batch, device=device), torch.randn_like(x), p_mean=-0.4, p_std=1.0
            )
            optimizer.zero_grad()
            (loss.sum() / batch).backward()
            optimizer.step()
        else:
            with torch.no_grad():
                model(x, torch.tensor(1.0), labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    once()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or count < 3:
        once()
        count += 1
    return count * batch / (time.perf_counter() - start)

"""On a GPU: the same networks, images and training as on the CPU, up to the rounding of its kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autoguidance as ag
from autoguidance.data.open import open_data
from autoguidance.evaluate import Reference, open_network, source_statistics
from autoguidance.evaluate.frechet import frechet_distance
from autoguidance.models import build_model
from autoguidance.sample import sample_batches
from autoguidance.storage import read_json_lines
from autoguidance.train.loop import train
from autoguidance.train.presets import resolve

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NETWORK = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
}


@pytest.fixture(autouse=True)
def _true_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 has 10 bits of mantissa: what is compared here is the code."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def networks(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same random network on the CPU and on the GPU."""
    torch.manual_seed(seed)
    cpu = build_model({**NETWORK, "attn_resolutions": [8]}).eval()
    with torch.no_grad():
        for name, parameter in cpu.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)  # zero at the start, which would hide the network behind the skip connection
    gpu = build_model({**NETWORK, "attn_resolutions": [8]}).eval()
    gpu.load_state_dict(cpu.state_dict())
    gpu.to("cuda").body_dtype = dtype
    return cpu, gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_network(dtype: str, tolerance: float) -> None:
    cpu, gpu = networks(0, getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 16, 16, generator=generator) * 2
    sigma = torch.tensor([0.01, 0.05, 0.2, 0.5, 1, 3, 10, 80.0])
    labels = torch.eye(4).repeat(2, 1)
    with torch.no_grad():
        expected, found = cpu(x, sigma, labels), gpu(x.cuda(), sigma.cuda(), labels.cuda()).cpu()
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert (expected - x * 0).abs().max() > 0.1


def test_samples_are_those_of_the_cpu() -> None:
    pairs = [networks(0), networks(1)]
    images = []
    for which in (0, 1):
        guided = ag.Autoguidance(pairs[0][which], pairs[1][which], weight=1.5)
        images.append(ag.sample(guided, seeds=range(12), solver=ag.Heun(num_steps=8)).int())
    assert (images[0] - images[1]).abs().max() <= 1
    assert images[0].float().std() > 10


def test_an_image_depends_on_its_seed_alone() -> None:
    gpu = networks(0)[1]
    many = torch.cat([b.latents for b in sample_batches(gpu, range(300), solver=ag.Heun(num_steps=3), batch_size=1)])
    few = torch.cat([b.latents for b in sample_batches(gpu, [299, 5, 17], solver=ag.Heun(num_steps=3))])
    assert torch.equal(few, many[[299, 5, 17]])


def test_recorded_networks_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = networks(0, torch.float16)[1]
    recorded = ag.sample(gpu, seeds=range(40), solver=ag.Heun(num_steps=5), decode=False)
    assert gpu._recordings._recordings
    assert not gpu._recordings._failed
    monkeypatch.setenv("AUTOGUIDANCE_CUDA_GRAPHS", "0")
    assert torch.equal(ag.sample(gpu, seeds=range(40), solver=ag.Heun(num_steps=5), decode=False), recorded)
    monkeypatch.delenv("AUTOGUIDANCE_CUDA_GRAPHS")
    with torch.no_grad():
        gpu.unet.out_conv.weight.neg_()  # other weights: no recording of the old ones may be used
    changed = ag.sample(gpu, seeds=range(40), solver=ag.Heun(num_steps=5), decode=False)
    assert (changed - recorded).abs().max() > 0.1


def test_recorded_training_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = open_data("digits")
    config = resolve("nano", source, num_images=30 * 128, log_images=128, num_snapshots=2, micro_batch=100)
    losses = []
    for enabled in ("1", "0"):
        monkeypatch.setenv("AUTOGUIDANCE_CUDA_GRAPHS", enabled)
        train(config, source, tmp_path / enabled, device="cuda")
        losses.append([record["loss"] for record in read_json_lines(tmp_path / enabled / "log.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_training_follows_the_cpu_and_resumes(tmp_path: Path) -> None:
    source = open_data("digits")
    losses = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16"), ("cuda", "float16")):
        config = resolve("nano", source, num_images=64 * 128, dtype=dtype, log_images=128, num_snapshots=2)
        out = tmp_path / f"{device}-{dtype}"
        if dtype == "bfloat16":  # in two parts
            train(config, source, out, device=device, stop_after_images=20 * 128)
        assert train(config, source, out, device=device).finished
        losses[device, dtype] = np.array([record["loss"] for record in read_json_lines(out / "log.jsonl")])
        assert ag.load(f"{out}@0.100", device=device).img_resolution == 8
    expected = losses["cpu", "float32"]
    assert np.abs(losses["cuda", "float32"] / expected - 1).max() < 1e-3
    for dtype in ("bfloat16", "float16"):
        assert np.abs(losses["cuda", dtype] / expected - 1).max() < 0.05, dtype


@pytest.mark.parametrize("name", ["pixels", "inception-like"])
def test_distances(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_data("digits")
    if name == "inception-like":
        (tmp_path / "gpu_features.py").write_text(
            "import torch\n"
            "w = torch.randn(40, 3, 3, 3, generator=torch.Generator().manual_seed(0))\n"
            "def features(images):\n"
            "    return torch.nn.functional.conv2d(images.float() / 99, w.to(images.device)).relu().mean((2, 3))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        name = "callable:gpu_features:features"
    distances = []
    for device in ("cpu", "cuda"):
        network = open_network(name, channels=1, resolution=8, device=device)
        whole = Reference(network=network, statistics=source_statistics([network], source)[0])
        shifted = torch.roll(source.read(range(1000)), 1, 3)
        from autoguidance.evaluate import batch_statistics

        distances.append(frechet_distance(batch_statistics([network], [shifted])[0], whole.statistics))
    assert distances[1] == pytest.approx(distances[0], rel=1e-4)
    assert distances[0] > 1e-3


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from autoguidance.cli import main

    def command(text: str, *more: str) -> None:
        assert main([*text.split(), *more]) == 0, capsys.readouterr().err

    run: Callable[[str], str] = lambda name: str(tmp_path / name)  # noqa: E731
    command("train digits --preset nano --images 8Ki --device cuda --out", run("main"))
    command(
        f"generate --main {run('main')} --guide {run('main')}@0.100 --weight 1.3 --seeds 0-63 --steps 6 --out",
        run("made"),
    )
    command(f"evaluate {run('made')} --ref digits --features pixels --metrics fd,kid,prdc --out", run("result.json"))
    assert (tmp_path / "result.json").exists()

"""The latent path end to end, with a tiny autoencoder of random weights made from configuration: encode, train, generate, decode.

Nothing is downloaded. Needs diffusers (the `vae` extra).
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autoguidance.cli import main
from autoguidance.data import make_encoder, open_data
from autoguidance.data.encode import decode_data, encode_data
from autoguidance.data.latents import LatentSource
from autoguidance.data.parts import PART_IMAGES
from autoguidance.data.vae import PUBLISHED_VAE, VaeEncoder, load_vae, slice_images
from autoguidance.errors import UserError
from autoguidance.models.files import read_model_info
from autoguidance.sample import image_encoder
from autoguidance.storage import read_json

pytest.importorskip("diffusers", reason="needs the vae extra: pip install 'autoguidance[vae]'")

RESOLUTION, FACTOR, LATENT_CHANNELS = 16, 2, 4


def save_vae(folder: Path, seed: int, **changes: object) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoencoderKL(**settings)  # type: ignore[arg-type]
        for parameter in model.parameters():  # larger than the usual start, so that images differ visibly
            parameter.data.mul_(2.0)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae") / "tiny", seed=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of pictures of one colour each with a little noise, in three classes."""
    rng = np.random.default_rng(0)
    count = PART_IMAGES + 7
    colours = rng.integers(20, 236, (count, 1, 1, 3))
    pixels = colours + rng.integers(-20, 20, (count, RESOLUTION, RESOLUTION, 3))
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=np.arange(count) % 3, class_names=np.array(["a", "b", "c"]))
    return path


@pytest.fixture(scope="module")
def latents(images: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "latents.zip"
    encode_data(images, out, vae=str(vae))
    return out


def opened(path: Path) -> LatentSource:
    source = open_data(path, latents=True)
    assert isinstance(source, LatentSource)
    return source


def encoder_of(path: Path) -> VaeEncoder:
    encoder = make_encoder(opened(path).encoder)
    assert isinstance(encoder, VaeEncoder)
    return encoder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_latents_are_what_the_vae_gives_for_pixels_between_0_and_1(latents: Path, images: Path, vae: Path) -> None:
    source = opened(latents)
    pixels = open_data(images)
    model = load_vae(str(vae), "cpu")
    chosen = [0, 5, PART_IMAGES, PART_IMAGES + 6]
    with torch.no_grad():
        posterior = model.encode(pixels.read(chosen).float() / 255).latent_dist
    expected = torch.cat([posterior.mean, (0.5 * posterior.logvar).exp()], dim=1)
    torch.testing.assert_close(source.read(chosen), expected, rtol=1e-4, atol=1e-5)
    assert (source.resolution, source.latent_resolution, source.latent_channels) == (16, 8, LATENT_CHANNELS)
    assert source.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(source.class_idx, pixels.class_idx)


def test_the_form_is_that_of_the_edm2_data_sets(latents: Path) -> None:
    with zipfile.ZipFile(latents) as archive:
        names = archive.namelist()
        assert names == [*(f"00000/img-mean-std-{index:08d}.npy" for index in range(PART_IMAGES + 7)), "dataset.json"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        with archive.open(names[3]) as file:
            array = np.load(file, allow_pickle=False)
    assert (array.dtype, array.shape) == (np.dtype("float32"), (2 * LATENT_CHANNELS, 8, 8))


def test_the_measured_scale_gives_mean_0_and_deviation_one_half(latents: Path) -> None:
    """E[z] = 0 and E[z^2] = 0.25 per channel over all images, positions and draws, with z = (m + s e - raw_mean) / 2 raw_std."""
    source = opened(latents)
    mean, std = source.read(range(source.num_images)).double().split(LATENT_CHANNELS, dim=1)
    raw_mean, raw_std = (torch.tensor(source.encoder[key], dtype=torch.float64) for key in ("raw_mean", "raw_std"))
    torch.testing.assert_close(mean.mean((0, 2, 3)), raw_mean, rtol=1e-6, atol=1e-6)
    centred = mean - raw_mean[:, None, None]
    torch.testing.assert_close(
        (centred.square() + std.square()).mean((0, 2, 3)), raw_std.square(), rtol=1e-6, atol=1e-6
    )


def test_decoding_undoes_the_scale_clamps_and_truncates(latents: Path, vae: Path) -> None:
    encoder = encoder_of(latents)
    z = torch.randn(3, LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = [torch.tensor(values)[:, None, None] for values in (encoder.raw_mean, encoder.raw_std)]
    with torch.no_grad():
        pixels = load_vae(str(vae), "cpu").decode(z * scale[1] / 0.5 + scale[0]).sample
    expected = np.floor(np.clip(pixels.numpy(), 0, 1) * 255)
    found = encoder.decode(z)
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy() - expected).max() <= 1  # a value that rounding carries over a whole number
    assert (found.numpy() == expected).mean() > 0.99
    assert len(np.unique(found)) > 20


def test_an_image_does_not_depend_on_its_neighbours_or_the_batch(latents: Path) -> None:
    encoder = encoder_of(latents)
    assert slice_images(RESOLUTION, torch.device("cpu")) == 64
    z = torch.randn(70, LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = encoder.decode(z)
    assert torch.equal(encoder.decode(z[69:]), whole[69:])
    assert torch.equal(encoder.decode(z[[3, 68]]), whole[[3, 68]])
    assert encoder.decode(z[:0]).shape == (0, 3, RESOLUTION, RESOLUTION)
    assert torch.equal(encoder.moments(whole)[65:66], encoder.moments(whole[65:66]))


def test_the_vae_never_sees_more_than_a_slice(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: 512-pixel images go through one at a time on a CPU, and eight at a time on a GPU."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [slice_images(width, cpu) for width in (64, 256, 512, 1024)] == [64, 4, 1, 1]
    assert [slice_images(width, gpu) for width in (64, 256, 512, 1024)] == [64, 32, 8, 2]
    encoder = encoder_of(latents)
    model = load_vae(encoder.vae, "cpu")
    sizes = []
    original = model.decode
    monkeypatch.setattr(model, "decode", lambda z: sizes.append(len(z)) or original(z))
    encoder.decode(torch.zeros(130, LATENT_CHANNELS, 8, 8))
    assert sizes == [64, 64, 64]


def test_grey_images_are_encoded_as_rgb(vae: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "rgb.npy", np.repeat(grey[..., None], 3, axis=3))
    encode_data(tmp_path / "grey.npy", tmp_path / "grey.zip", vae=str(vae))
    encode_data(tmp_path / "rgb.npy", tmp_path / "rgb.zip", vae=str(vae))
    assert opened(tmp_path / "grey.zip").fingerprint == opened(tmp_path / "rgb.zip").fingerprint


def test_an_interrupted_encoding_and_decoding_go_on(images: Path, latents: Path, vae: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, figures: dict[str, object]) -> None:
        if list(tmp_path.glob(".*/0*.zip")):  # a part is finished
            raise KeyboardInterrupt

    for make, source in ((lambda *a, **k: encode_data(*a, vae=str(vae), **k), images), (decode_data, latents)):
        out = tmp_path / f"{source.stem}-made.zip"
        with pytest.raises(KeyboardInterrupt):
            make(source, out, progress=stop)
        assert not out.exists()
        result = make(source, out, batch=5)  # other slices: the same latents but for rounding
        assert (result.num_made, result.num_images) == (7, PART_IMAGES + 7)
        assert make(source, out).was_there
    again = opened(tmp_path / "images-made.zip")
    everything = range(again.num_images)
    torch.testing.assert_close(again.read(everything), opened(latents).read(everything), rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


SIZE = ["--preset", "nano", "--images", "512", "--batch", "32", "--set", "num_snapshots=2"]


def test_from_images_to_generated_images(
    images: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, out = tmp_path / "latents.zip", tmp_path / "run"
    assert run("data", "encode", images, "--out", latents, "--vae", vae, "--device", "cpu") == 0
    assert run("data", "inspect", latents, "--json") == 0
    report = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert report["latents"] == {"channels": LATENT_CHANNELS, "resolution": 8, "vae": str(vae)}
    assert report["encoded"]["mean"] == pytest.approx(0, abs=0.01)
    assert report["encoded"]["std"] == pytest.approx(0.5, abs=0.01)
    assert run("train", latents, "--out", out, *SIZE, "--device", "cpu") == 0
    info = read_model_info(out / "snapshots" / "00000000512-0.050.safetensors")
    assert info.encoder == opened(latents).encoder
    assert (info.config["img_channels"], info.config["img_resolution"]) == (LATENT_CHANNELS, 8)
    assert info.class_names == ("a", "b", "c")
    generated = tmp_path / "generated"
    arguments = ["generate", "--main", out, "--seeds", "0-2", "--steps", "3", "--device", "cpu", "--out"]
    assert run(*arguments, generated) == 0
    pictures = [np.asarray(Image.open(generated / f"{seed:06d}.png")) for seed in range(3)]
    assert {picture.shape for picture in pictures} == {(RESOLUTION, RESOLUTION, 3)}
    assert run(*arguments, tmp_path / "npz", "--format", "npz") == 0
    with np.load(tmp_path / "npz" / "images.npz") as arrays:
        decoded = encoder_of(latents).decode(torch.from_numpy(arrays["latents"]))
        np.testing.assert_array_equal(arrays["images"], decoded)
        np.testing.assert_array_equal(arrays["images"].transpose(0, 2, 3, 1), pictures)
    assert run("data", "decode", latents, "--out", tmp_path / "decoded", "--device", "cpu") == 0
    back = open_data(tmp_path / "decoded")
    assert (back.num_images, back.class_names) == (PART_IMAGES + 7, ("a", "b", "c"))
    encoder = encoder_of(latents)
    np.testing.assert_array_equal(back.read([1, 260]), encoder.decode(encoder.encode(open_data(images).read([1, 260]))))


_TRAIN = """
import sys, torch
torch.set_num_threads(1)
from autoguidance.data.open import open_data
from autoguidance.train.config import NetworkConfig, TrainConfig
from autoguidance.train.loop import train
network = NetworkConfig(model_channels=4, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(), channels_per_head=4)
config = TrainConfig(network=network, num_images=160, batch_size=8, num_snapshots=5, log_images=16, checkpoint_seconds=0.0)
train(config, open_data(sys.argv[2], latents=True), sys.argv[1])
"""


@pytest.mark.slow
def test_latent_training_killed_and_resumed_ends_with_the_same_bits(latents: Path, tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", _TRAIN, str(out), str(latents)], env=environment)

    whole, killed = start(tmp_path / "whole"), start(tmp_path / "killed")
    deadline = time.monotonic() + 60
    log = tmp_path / "killed" / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 5:
        assert killed.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start(tmp_path / "killed").wait(timeout=60) == 0
    assert whole.wait(timeout=60) == 0
    one, other = (read_json(tmp_path / name / "manifest.json")["files"] for name in ("whole", "killed"))
    snapshots = {name for name in one if name.startswith("snapshots/")}
    assert len(snapshots) >= 5
    assert {name: one[name] for name in snapshots} == {name: other[name] for name in snapshots}


def test_latents_and_images_are_not_mixed_up_in_training(
    images: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    out = tmp_path / "run"
    assert "holds images; make latents by" in refused("train", images, "--out", out, "--preset", "edm2-img512-s")
    assert "leave out --encoder" in refused("train", latents, "--out", out, "--preset", "nano", "--encoder", "pixels")
    assert "a mirrored image has other latents" in refused(
        "train", latents, "--out", out, "--preset", "nano", "--set", "mirror=true"
    )
    assert "leave out --resolution" in refused("train", latents, "--out", out, "--resolution", "8")
    assert "not images" in refused("evaluate", latents, "--ref", images)
    assert "not images" in refused("run", latents, "--out", tmp_path / "r")
    assert "holds images already" in refused("data", "decode", images, "--out", tmp_path / "x")
    assert not out.exists()


@pytest.fixture
def broken(vae: Path, tmp_path: Path) -> Path:
    """A copy of the VAE to be damaged."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in vae.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


WEIGHTS = "diffusion_pytorch_model.safetensors"


def encode_with(vae: object, images: Path, tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        encode_data(images, tmp_path / "out.zip", vae=str(vae))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.zip").exists()
    return str(caught.value)


def test_a_vae_that_cannot_be_used(images: Path, broken: Path, tmp_path: Path) -> None:
    weights = load_file(broken / WEIGHTS)
    name, tensor = next(iter(weights.items()))
    save_file({key: value for key, value in weights.items() if key != name}, broken / WEIGHTS)
    assert "lacks 1 weights" in encode_with(broken, images, tmp_path)
    save_file({**weights, name: torch.cat([tensor, tensor])}, broken / WEIGHTS)
    assert "get its files again" in encode_with(broken, images, tmp_path)
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-100])
    assert "cannot load the VAE" in encode_with(broken, images, tmp_path)
    (broken / WEIGHTS).rename(broken / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin is a pickle, which could run code" in encode_with(broken, images, tmp_path)
    (broken / WEIGHTS).write_bytes(b"")
    (broken / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "holds UNet2DModel, not an AutoencoderKL" in encode_with(broken, images, tmp_path)
    assert "is neither a folder nor a name on the Hugging Face hub" in encode_with("/not/there", images, tmp_path)


def test_sizes_that_do_not_fit_the_vae(vae: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", np.zeros((2, 9, 9, 3), dtype=np.uint8))
    assert "9 pixels are no multiple of the VAE's factor 2" in encode_with(vae, tmp_path / "odd.npy", tmp_path)


def test_a_model_finds_its_vae_elsewhere_and_refuses_another(
    latents: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTOGUIDANCE_VAE stands for the published VAE where there is no network; one of another shape is refused."""
    published = make_encoder({"name": "vae"}, img_channels=LATENT_CHANNELS, img_resolution=8)
    monkeypatch.setenv("AUTOGUIDANCE_VAE", str(vae))
    load_vae.cache_clear()
    with pytest.raises(UserError, match=r"factor \(3, 4, 2\), the model needs \(3, 4, 8\)"):
        published.prepare()
    elsewhere = make_encoder({**opened(latents).encoder, "vae": PUBLISHED_VAE})
    z = torch.randn(2, LATENT_CHANNELS, 8, 8)
    assert torch.equal(elsewhere.decode(z), encoder_of(latents).decode(z))
    monkeypatch.setenv("AUTOGUIDANCE_VAE", str(tmp_path / "nowhere"))
    load_vae.cache_clear()
    with pytest.raises(UserError, match="is not a folder"):
        elsewhere.prepare()


def test_the_published_vae_keeps_its_published_scale(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --vae the latents are scaled by the published constants, and a model that names the VAE alone, as imported
    ones do, decodes them."""
    stand_in = save_vae(
        tmp_path / "stand-in",
        seed=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
    )
    monkeypatch.setenv("AUTOGUIDANCE_VAE", str(stand_in))
    load_vae.cache_clear()
    encode_data(images, tmp_path / "latents.zip")
    source = opened(tmp_path / "latents.zip")
    assert source.encoder["vae"] == PUBLISHED_VAE
    assert source.encoder["raw_mean"] == [5.81, 3.25, 0.12, -2.15]
    assert source.encoder["raw_std"] == [4.17, 4.62, 3.71, 3.28]

    class Imported:
        img_channels, img_resolution, num_classes, sigma_data = LATENT_CHANNELS, 2, 0, 0.5
        encoder = {key: source.encoder[key] for key in ("name", "vae", "raw_mean", "raw_std")}  # noqa: RUF012

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return x

    encoder = image_encoder(Imported())
    assert encoder.config == source.encoder
    decode_data(tmp_path / "latents.zip", tmp_path / "back.zip")
    z = make_encoder(source.encoder).draw(source.read([7]), None)  # type: ignore[union-attr]
    assert torch.equal(open_data(tmp_path / "back.zip").read([7]), encoder.decode(z))


def test_without_the_extra_one_line_names_it(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_vae.cache_clear()
    with pytest.raises(UserError, match=r"needs the `vae` extra; run: pip install 'autoguidance\[vae\]'"):
        encoder_of(latents).prepare()


def test_training_on_latents_needs_no_vae(latents: Path) -> None:
    code = (
        "import sys; from autoguidance.data import make_encoder, open_data; "
        "source = open_data(sys.argv[1], latents=True); encoder = make_encoder(source.encoder); "
        "encoder.draw(source.read([0]), None); print('diffusers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(latents)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"

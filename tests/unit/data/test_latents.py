"""Sets of latents are read as they are, and hostile or damaged ones are refused by name, all problems at once."""

import io
import json
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import autoguidance.data.latent_files as latent_files
from autoguidance.data import DataError, make_encoder, open_data
from autoguidance.data.decode import BadImageError
from autoguidance.data.latent_files import npy_bytes, parse_moments
from autoguidance.data.latents import LatentSource
from autoguidance.data.parts import member_name
from autoguidance.data.vae import PUBLISHED_MEAN, PUBLISHED_STD, VaeEncoder
from autoguidance.errors import UserError

RNG = np.random.default_rng(0)
MOMENTS = RNG.normal(size=(5, 8, 4, 4)).astype(np.float32)
MOMENTS[:, 4:] = np.abs(MOMENTS[:, 4:])
NAMES = [member_name(index, "img-mean-std-", "npy") for index in range(5)]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[..., Path]:
    def make(changes: dict[str, bytes] | None = None, *, labels: object = None, **extra: object) -> Path:
        members = {name: npy(values) for name, values in zip(NAMES, MOMENTS, strict=True)}
        members |= changes or {}
        document = {"labels": labels, **extra}
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr("dataset.json", json.dumps(document))
        return tmp_path / "set.zip"

    return make


def opened(path: Path, **options: int) -> LatentSource:
    source = open_data(path, latents=True, **options)  # type: ignore[arg-type]
    assert isinstance(source, LatentSource)
    return source


def problems(path: Path) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        open_data(path, latents=True)
    return {problem.where: problem.what for problem in caught.value.problems}


@pytest.mark.parametrize("max_bytes_in_memory", [2 << 30, 0], ids=["in memory", "read again"])
def test_a_set_as_the_spec_describes_it(make_zip: Callable[..., Path], max_bytes_in_memory: int) -> None:
    labels = [[name, index % 2] for index, name in enumerate(NAMES)]
    source = opened(make_zip(labels=labels), max_bytes_in_memory=max_bytes_in_memory)
    assert (source.num_images, source.latent_channels, source.latent_resolution) == (5, 4, 4)
    assert (source.resolution, source.channels, source.class_names) == (32, 3, ("0", "1"))
    assert source.class_idx is not None
    assert source.class_idx.tolist() == [0, 1, 0, 1, 0]
    found = source.read([3, 0, 3])
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, MOMENTS[[3, 0, 3]])
    found.zero_()  # the caller owns it
    np.testing.assert_array_equal(source.read(range(5)), MOMENTS)
    with pytest.raises(UserError, match=r"the set has 0 \.\. 4"):
        source.read([5])
    # Without "encoder" in dataset.json the latents are those of the published VAE.
    assert source.encoder == {
        "name": "vae",
        "vae": "stabilityai/sd-vae-ft-mse",
        "raw_mean": [5.81, 3.25, 0.12, -2.15],
        "raw_std": [4.17, 4.62, 3.71, 3.28],
        "channels": 3,
        "resolution": 32,
        "factor": 8,
    }


def test_folder_and_zip_have_one_fingerprint_and_it_is_of_the_content(
    make_zip: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_zip()
    one = opened(path).fingerprint
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    assert opened(tmp_path / "folder").fingerprint == one
    (tmp_path / "folder" / NAMES[2]).write_bytes(npy(np.asfortranarray(MOMENTS[2].astype(np.float64))))
    assert opened(tmp_path / "folder").fingerprint == one
    changed = MOMENTS[2].copy()
    changed[0, 0, 0] += 1e-6
    (tmp_path / "folder" / NAMES[2]).write_bytes(npy(changed))
    assert opened(tmp_path / "folder").fingerprint != one
    assert opened(make_zip(labels=[[name, 0] for name in NAMES])).fingerprint != one


def test_latents_are_never_taken_for_images(make_zip: Callable[..., Path], tmp_path: Path) -> None:
    path = make_zip()
    with pytest.raises(UserError, match=r"are latents of an autoencoder, not images.*data decode"):
        open_data(path)
    with pytest.raises(UserError, match="leave out --resolution"):
        open_data(path, latents=True, resolution=16)
    from autoguidance.data.convert import convert_data

    with pytest.raises(UserError, match="not images"):
        convert_data(path, tmp_path / "out.zip")


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/trap-of-test-latents"),))


TRUNCATED = npy(MOMENTS[0])[:-7]
LYING = npy(MOMENTS[0]).replace(b"(8, 4, 4)", b"(8, 4, 9)")
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file"),
    "objects": (npy(np.array([Trap()], dtype=object)), "Python objects (a pickle), which could run code"),
    "object fields": (npy(np.zeros(3, dtype=[("a", "f4"), ("b", object)])), "Python objects (a pickle)"),
    "bare pickle": (pickle.dumps(Trap()), "not a numpy array"),
    "text": (b"hello, I am a latent", "not a numpy array"),
    "integers": (npy(np.zeros((8, 4, 4), dtype=np.uint8)), "uint8 numbers, not float32"),
    "complex": (npy(np.zeros((8, 4, 4), dtype=np.complex64)), "complex64 numbers"),
    "long double": (npy(np.zeros((8, 4, 4), dtype=np.longdouble)), "numbers, not float32"),
    "fields": (npy(np.zeros(3, dtype=[("a", "f4")])), "numbers, not float32"),
    "batch": (npy(MOMENTS[:1]), "shape [1, 8, 4, 4], not"),
    "odd channels": (npy(MOMENTS[0, :7]), "shape [7, 4, 4], not"),
    "nothing": (npy(MOMENTS[0, :, :0]), "shape [8, 0, 4], not"),
    "truncated": (TRUNCATED, "declares 512 bytes of numbers, 505 are there"),
    "lying": (LYING, "declares 1,152 bytes of numbers, 512 are there"),
    "too long": (npy(MOMENTS[0]) + b"x", "declares 512 bytes of numbers, 513 are there"),
    "enormous": (npy(MOMENTS[0]).replace(b"(8, 4, 4), }      ", b"(8, 4, 9999999), }"), "declares 1,279,999,872 bytes"),
    "nan": (npy(np.where(MOMENTS[0] > 1, np.nan, MOMENTS[0])), "values that are not finite"),
    "infinite": (npy(np.full((8, 4, 4), np.inf, dtype=np.float32)), "values that are not finite"),
    "beyond float32": (npy(np.full((8, 4, 4), 1e300)), "values that are not finite"),
    "negative deviation": (npy(-np.ones((8, 4, 4), dtype=np.float32)), "negative standard deviations"),
    "header bomb": (b"\x93NUMPY\x02\x00" + (1 << 20).to_bytes(4, "little") + b"(" * (1 << 20), "not a numpy array"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_latent_is_refused(kind: str) -> None:
    content, reason = REFUSED[kind]
    with pytest.raises(BadImageError) as caught:
        parse_moments(content)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/trap-of-test-latents").exists()


def test_all_problems_are_named_at_once(make_zip: Callable[..., Path]) -> None:
    found = problems(
        make_zip(
            {
                NAMES[0]: REFUSED["objects"][0],
                NAMES[2]: REFUSED["nan"][0],
                NAMES[4]: npy(np.zeros((8, 6, 6), dtype=np.float32)),
                "../../evil.npy": npy(MOMENTS[0]),
            },
        )
    )
    assert found == {
        NAMES[0]: "Python objects (a pickle), which could run code and is not read; save floats",
        NAMES[2]: "values that are not finite",
        NAMES[4]: "6x6, others are 4x4",
        "../../evil.npy": "a name that leads out of the folder",
    }


def test_different_numbers_of_channels(make_zip: Callable[..., Path]) -> None:
    assert problems(make_zip({NAMES[1]: npy(np.ones((6, 4, 4), dtype=np.float32))})) == {
        "": "files of 6 and 8 channels; encode the set again"
    }


def test_latents_that_are_not_square(make_zip: Callable[..., Path]) -> None:
    wide = npy(np.ones((8, 4, 6), dtype=np.float32))
    assert problems(make_zip(dict.fromkeys(NAMES, wide))) == {"": "the latents are 6x4, not square"}


@pytest.mark.parametrize(
    "encoder, reason",
    [
        ("vae", '"encoder" is not an object'),
        ({"name": "pixels"}, "latents need 'vae'"),
        ({"name": "vae", "raw_std": [1, 1, 1, 0]}, "raw_std positive"),
        ({"name": "vae", "raw_std": [1, 1]}, "one number per latent channel"),
        ({"name": "vae", "raw_mean": "no"}, "one number per latent channel"),
        ({"name": "vae", "vae": "other/vae"}, "raw_mean of the VAE other/vae is missing"),
        ({"name": "vae", "vae": 3}, "give the name of a VAE"),
        ({"name": "vae", "resolution": 64}, "the network takes 4 of 4x4"),
        ({"name": "vae", "factor": "8"}, "factor is '8'"),
        ({"name": "vae", "code": "import os"}, "unknown setting code"),
    ],
)
def test_an_encoder_that_cannot_be(make_zip: Callable[..., Path], encoder: object, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(make_zip(encoder=encoder), latents=True)
    assert reason in str(caught.value)


def test_a_link_in_a_zip_is_refused(make_zip: Callable[..., Path], tmp_path: Path) -> None:
    path = make_zip()
    link = zipfile.ZipInfo("00000/link.npy")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert problems(path) == {"00000/link.npy": "a symbolic link; store the file itself"}


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", npy(np.zeros((8, 1024, 1024), dtype=np.float32)))
    assert (tmp_path / "set.zip").stat().st_size < 1 << 16
    assert problems(tmp_path / "set.zip")["0.npy"].startswith("decompression bomb: 33,554,560 bytes out of")


def test_a_file_that_changes_after_the_check(make_zip: Callable[..., Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(make_zip()) as archive:
        archive.extractall(tmp_path / "folder")
    source = opened(tmp_path / "folder", max_bytes_in_memory=0)
    (tmp_path / "folder" / NAMES[1]).write_bytes(npy(MOMENTS[0]))
    with pytest.raises(UserError, match="latent 1 changed after it was checked"):
        source.read([1])
    (tmp_path / "folder" / NAMES[1]).write_bytes(b"")
    with pytest.raises(UserError, match="was readable when it was checked"):
        source.read([1])


def test_what_is_written_is_read_again() -> None:
    content = npy_bytes(MOMENTS[0])
    np.testing.assert_array_equal(parse_moments(content), MOMENTS[0])
    stored = np.load(io.BytesIO(content), allow_pickle=False)
    assert (stored.dtype, stored.shape) == (np.dtype("<f4"), (8, 4, 4))
    np.testing.assert_array_equal(
        latent_files.parse_moments(npy(MOMENTS[0].astype(np.float16))), np.float16(MOMENTS[0])
    )


def test_drawing_follows_the_equation() -> None:
    """latent = mean + std * noise, then (latent - raw_mean) * 0.5 / raw_std, by the published constants."""
    encoder = make_encoder({"name": "vae"}, img_channels=4, img_resolution=4)
    assert isinstance(encoder, VaeEncoder)
    noise = RNG.normal(size=(5, 4, 4, 4)).astype(np.float32)
    constants = np.array([PUBLISHED_MEAN, PUBLISHED_STD])[:, None, :, None, None]
    raw = MOMENTS[:, :4] + MOMENTS[:, 4:] * noise
    drawn = encoder.draw(torch.from_numpy(MOMENTS), torch.from_numpy(noise))
    np.testing.assert_allclose(drawn, (raw - constants[0]) * 0.5 / constants[1], rtol=1e-5, atol=1e-6)
    mean = encoder.draw(torch.from_numpy(MOMENTS), None)
    np.testing.assert_allclose(mean, (MOMENTS[:, :4] - constants[0]) * 0.5 / constants[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="moments have shape"):
        encoder.draw(torch.from_numpy(MOMENTS[:, :4]), None)


def test_the_configuration_tells_all_and_a_published_name_is_enough() -> None:
    short = make_encoder({"name": "vae"}, img_channels=4, img_resolution=64)
    assert short.resolution == 512
    assert make_encoder(json.loads(json.dumps(short.config))) == short
    assert make_encoder(short.config, img_channels=4, img_resolution=64, device="cpu") == short
    with pytest.raises(UserError, match="resolution is None"):
        make_encoder({"name": "vae"})
    with pytest.raises(UserError, match="the network takes 8 of 64x64"):
        make_encoder({"name": "vae"}, img_channels=8, img_resolution=64)
    with pytest.raises(UserError, match="no multiple of the VAE's factor 8"):
        make_encoder({"name": "vae", "resolution": 30})

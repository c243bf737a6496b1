"""Networks that others bring: TorchScript files and Python functions."""

import functools
import io
import json
import sys
import tarfile
import textwrap
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from third_party_features import load_resnet56
from torch import Tensor, nn
from torch.nn import functional

from autoguidance.errors import UserError
from autoguidance.evaluate import batch_statistics, frechet_distance, open_network
from autoguidance.evaluate.callables import CallableFeatures, load_callable
from autoguidance.evaluate.torchscript import load_torchscript


class Small(nn.Module):
    """A feature network as the documentation describes it."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.normal_(generator=torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.conv(images.float() / 127.5 - 1)).mean(dim=(2, 3))


class Wrong(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().mean(dim=(2, 3))
        if self.kind == "map":
            return images.float()
        if self.kind == "integers":
            return x.long()
        if self.kind == "count":
            return x[:1]
        if self.kind == "nan":
            return x / 0 - x / 0
        if self.kind == "dropout":
            return torch.nn.functional.dropout(x, 0.5, training=True)
        if self.kind == "neighbours":
            return x - x.mean(dim=0)
        return x @ torch.zeros(7, 7)


def saved(network, path):
    torch.jit.script(network.eval()).save(str(path))
    return path


def noise(num=6, size=12, channels=3):
    return torch.randint(0, 256, (num, channels, size, size), generator=torch.Generator().manual_seed(1)).byte()


def test_a_torchscript_file_is_a_feature_network(tmp_path):
    path = saved(Small(), tmp_path / "small.pt")
    network = open_network(f"torchscript:{path}", channels=3, resolution=12)
    assert (network.name, network.num_features) == ("torchscript:small.pt", 5)
    with torch.no_grad():
        torch.testing.assert_close(network(noise()), Small()(noise()))
    grey = noise(channels=1)
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    assert network(noise(size=30)).shape == (6, 5)
    other = load_torchscript(saved(Small(seed=1), tmp_path / "other.pt"), resolution=12)
    assert len({network.sha256, other.sha256}) == 2
    copy = tmp_path / "copy.pt"
    copy.write_bytes(path.read_bytes())
    assert load_torchscript(copy, resolution=64).sha256 == network.sha256


WRONG = {
    "map": r"returns \[4, 3, 12, 12\] for 4 images, not \[4, d\]",
    "integers": "returns torch.int64, not a tensor of floats",
    "count": r"returns \[1, 3\] for 4 images",
    "nan": "NaN or infinity for noise images",
    "dropout": "differ by .* between two calls or beside other images",
    "neighbours": "differ by .* between two calls or beside other images",
    "shapes": r"fail on uint8 images \[4, 3, 12, 12\]",
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("how", ["torchscript", "callable"])
def test_what_is_no_feature_network_is_refused(kind, how, tmp_path):
    def open_wrong():
        if how == "torchscript":
            return load_torchscript(saved(Wrong(kind), tmp_path / "wrong.pt"), resolution=12)
        return CallableFeatures(Wrong(kind).eval(), name="wrong", resolution=12)

    with pytest.raises(UserError, match=WRONG[kind]) as caught:
        open_wrong()
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    good = saved(Small(), tmp_path / "small.pt").read_bytes()
    state = io.BytesIO()
    torch.save(Small().state_dict(), state)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small/constants.pkl", b"")
        archive.writestr("small/code/big.py", bytes(100 << 20))
    path = tmp_path / "bad.pt"
    for content in (b"", b"no", good[: len(good) // 2], state.getvalue(), bomb.getvalue()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad.pt cannot be read as TorchScript \(.+\); store it with torch.jit"):
            load_torchscript(path, resolution=12)
    with pytest.raises(UserError, match=r"absent.pt does not exist"):
        load_torchscript(tmp_path / "absent.pt", resolution=12)
    with pytest.raises(UserError, match="is a folder"):
        load_torchscript(tmp_path, resolution=12)
    with pytest.raises(UserError, match=r"unknown feature network 'torchscript:'; there are .*torchscript:FILE"):
        open_network("torchscript:", channels=3, resolution=12)


def mean_colour(images):
    return images.float().mean(dim=(2, 3))


def scaled_colour(images, factor):
    return factor * mean_colour(images)


def test_a_function_is_a_feature_network():
    network = CallableFeatures(mean_colour, name="colour")
    assert (network.name, network.num_features, network.resize) == ("colour", 3, "none")
    assert torch.equal(network(noise()), mean_colour(noise()))
    assert CallableFeatures(mean_colour, name="colour", resize="mine").resize == "mine"
    column = CallableFeatures(lambda images: mean_colour(images)[..., None, None].double(), name="column")
    assert torch.equal(column(noise()), mean_colour(noise()))


def test_the_hash_of_a_function_sees_its_weights():
    one = CallableFeatures(Small().eval(), name="small")
    assert one.sha256 == CallableFeatures(Small().eval(), name="again").sha256
    assert one.sha256 != CallableFeatures(Small(seed=1).eval(), name="small").sha256
    nearly = Small()
    nearly.conv.weight.data[0, 0, 0, 0] += 1e-6  # far below the digits of the features that count
    assert one.sha256 != CallableFeatures(nearly.eval(), name="small").sha256
    # A plain function's weights are seen by what they do to the features.
    hashes = [CallableFeatures(functools.partial(scaled_colour, factor=f), name="f").sha256 for f in (1, 1 + 1e-7, 1.1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_given_hash_is_taken_and_a_missing_one_asked_for():
    assert CallableFeatures(mean_colour, name="colour", sha256="ab" * 32).sha256 == "ab" * 32
    named = Small().eval()
    named.sha256 = "cd" * 32
    assert CallableFeatures(named, name="small").sha256 == "cd" * 32
    for wrong in ("", "AB" * 32, "short"):
        with pytest.raises(UserError, match="is not 64 hexadecimal digits"):
            CallableFeatures(mean_colour, name="colour", sha256=wrong)
    scope = {}
    exec("def typed(images): return images.float().mean(dim=(2, 3))", scope)
    with pytest.raises(UserError, match=r"its source file cannot be found.*give sha256"):
        CallableFeatures(scope["typed"], name="typed")
    assert CallableFeatures(scope["typed"], name="typed", sha256="ab" * 32).num_features == 3


def test_training_mode_is_refused():
    with pytest.raises(UserError, match="training mode; call its eval"):
        CallableFeatures(Small(), name="small")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(
        textwrap.dedent(
            """
            import torch
            class Colour:
                resize = "nearest-4"
                def __call__(self, images):
                    return torch.nn.functional.interpolate(images.float(), (4, 4)).flatten(1)
            colour = Colour()
            number = 3
            """
        )
    )
    (tmp_path / "my_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_features"
    for name in ("my_features", "my_broken"):
        sys.modules.pop(name, None)


def test_a_function_is_imported_by_name(module):
    network = open_network(f"callable:{module}:colour", channels=1, resolution=8)
    assert (network.name, network.num_features, network.resize) == (f"callable:{module}:colour", 48, "nearest-4")
    assert len(network.sha256) == 64


@pytest.mark.parametrize(
    "where,message",
    [
        ("my_features", "write callable:package.module:attribute"),
        ("my_features:", "write callable:package.module:attribute"),
        ("../x:colour", "write callable:package.module:attribute"),
        ("no_such_package.x:colour", "No module named 'no_such_package'; put the folder that holds no_such_package on"),
        ("my_broken:colour", "its module fails: ZeroDivisionError"),
        ("my_features:absent", "the module my_features has no absent"),
        ("my_features:number", "number is no function"),
        ("my_features:Colour", "Colour is a class"),
    ],
)
def test_what_cannot_be_imported_is_named(module, where, message):
    with pytest.raises(UserError, match=message):
        load_callable(where, resolution=8)


# A network that others trained on CIFAR-10 (../shared/data/README.md), as a user would bring it.


@pytest.fixture(scope="module")
def resnet(shared):
    return load_resnet56(shared("data/networks/resnet56-4bfd9763.th")).eval()


@pytest.fixture(scope="module")
def cifar(shared):
    """The first 200 images of each of the first two classes in the archive, without unpacking the rest."""
    found: dict[str, list[Tensor]] = {}
    with tarfile.open(shared("data/cifar10-train.tar.xz"), mode="r|xz") as archive:
        for member in archive:
            label = member.name.split("/")[-2] if member.name.endswith(".jpg") else ""
            if not label or len(found.get(label, [])) == 200:
                continue
            content = archive.extractfile(member)
            assert content is not None
            pixels = np.array(Image.open(io.BytesIO(content.read())).convert("RGB"))
            found.setdefault(label, []).append(torch.from_numpy(pixels).permute(2, 0, 1))
            if len(found) == 2 and all(len(images) == 200 for images in found.values()):
                break
    return {label: torch.stack(images) for label, images in found.items()}


def test_a_trained_network_sees_what_is_wrong_with_real_images(resnet, cifar, tmp_path):
    path = saved(resnet, tmp_path / "resnet56.pt")
    network = open_network(f"torchscript:{path}", channels=3, resolution=32)
    assert network.num_features == 64
    called = CallableFeatures(resnet, name="resnet56", resolution=32)
    images = torch.cat(list(cifar.values()))
    with torch.no_grad():
        scores = resnet.linear(called(images[::4]))
    # The weights are the trained ones: most images of a class get one class, though JPEG cost some accuracy.
    labels = scores.argmax(dim=1).reshape(2, -1)
    commonest = labels.mode(dim=1).values
    assert commonest[0] != commonest[1]
    assert (labels == commonest[:, None]).float().mean() > 0.8
    torch.testing.assert_close(called(images[:8]), network(images[:8]))

    half, other = images[::2], images[1::2]
    (reference,) = batch_statistics([called], [half])

    def distance(changed):
        return frechet_distance(batch_statistics([called], [changed])[0], reference)

    generator = torch.Generator().manual_seed(0)
    noisy = (other + 20 * torch.randn(other.shape, generator=generator)).round().clamp(0, 255).byte()
    blurred = functional.avg_pool2d(other.float(), 3, stride=1, padding=1, count_include_pad=False).round().byte()
    real = distance(other)
    assert distance(noisy) > 5 * real
    assert distance(blurred) > 5 * real


def test_results_can_be_written_as_json(resnet):
    network = CallableFeatures(resnet, name="resnet56", resolution=32)
    assert json.loads(json.dumps([network.name, network.sha256, network.num_features, network.resize]))[2] == 64

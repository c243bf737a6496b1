"""The published int8 MobileNet-v2 (TensorFlow Lite) as float32 weights for third_party_features.mobilenet_v2.

Every weight becomes scale * (integer - zero point), every bias scale * integer; nothing else is changed. Needs
`ai-edge-litert` (PyPI), which the network itself does not.

    python benchmarks/convert_mobilenet.py --out FOLDER [--tflite FILE] [--check FOLDER ... --num 100]

`--check` compares both networks on images from these folders, the same number from each, picked by a seeded generator:
cosine similarity of the 1280 features of each image, and how often both name the same class; and for a few images
how far each of our layers, given the input that the int8 layer had, is from its output, in steps of its 8 bits (0.5 is
the rounding). The last line of the output is one JSON object.
"""

import argparse
import hashlib
import importlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from third_party_features import MOBILENET_V2_FILE, TFLITE_HASH, MobileNetV2, load_mobilenet_v2
from torch import Tensor, nn
from torch.nn import functional

from autoguidance.evaluate.running import true_float32

TFLITE = Path(__file__).resolve().parents[2] / "shared/data/networks/mobilenet_v2_1.0_224_quant.tflite"
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def open_tflite(path: Path) -> Any:
    """Interpreter that keeps every activation."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(
        str(path),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    return interpreter


def dequantized(interpreter: Any, index: int) -> Tensor:
    """A tensor's real values, float32."""
    details = interpreter._get_tensor_details(index, 0)
    scale, zero = details["quantization"]
    assert len(details["quantization_parameters"]["scales"]) == 1, "one scale for the whole tensor expected"
    integers = interpreter.get_tensor(index).astype(np.int64) - zero
    return torch.from_numpy((integers * float(scale)).astype(np.float32))


def convolutions(interpreter: Any, network: MobileNetV2) -> list[tuple[nn.Conv2d | nn.Linear, dict[str, Any]]]:
    """Our layers and the operations that they stand for: they run in one order in both."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    operations = [o for o in interpreter._get_ops_details() if o["op_name"] in CONVOLUTIONS]
    return list(zip(layers, operations, strict=True))


def converted(interpreter: Any) -> MobileNetV2:
    """Our network with its weights."""
    network = MobileNetV2()
    for layer, operation in convolutions(interpreter, network):
        _, weight, bias = (dequantized(interpreter, int(index)) for index in operation["inputs"])
        depthwise = operation["op_name"] == "DEPTHWISE_CONV_2D"
        weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)  # both were channels last
        weight = weight.flatten(1) if isinstance(layer, nn.Linear) else weight
        assert layer.bias is not None
        assert weight.shape == layer.weight.shape, (operation, layer)
        layer.weight.data, layer.bias.data = weight.contiguous(), bias
    return network.eval().requires_grad_(False)


def pick_images(folders: list[Path], num: int) -> list[tuple[str, Path]]:
    """(folder's name, file) of about `num` images, evenly from the folders."""
    found = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
        found += [(folder.name, path) for path in random.Random(0).sample(files, -(-num // len(folders)))]
    return found


def layer_difference(interpreter: Any, network: MobileNetV2) -> float:
    """The largest difference of one layer's output for the input that the int8 layer just had, in steps of 8 bits."""
    largest = 0.0
    for layer, operation in convolutions(interpreter, network):
        given, made = int(operation["inputs"][0]), int(operation["outputs"][0])
        scale, zero = interpreter._get_tensor_details(made, 0)["quantization"]
        x, y = (dequantized(interpreter, index).permute(0, 3, 1, 2) for index in (given, made))
        ours = layer(x.flatten(1))[..., None, None] if isinstance(layer, nn.Linear) else layer(x)
        ours = ours.clamp(-zero * scale, (255 - zero) * scale)  # that of ReLU6 is 0 to 6
        largest = max(largest, float((ours - y).abs().max()) / scale)
    return largest


def compare(interpreter: Any, network: MobileNetV2, images: list[tuple[str, Path]]) -> dict[str, Any]:
    """Figures of `--check`."""
    (entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()
    (pooling,) = [o for o in interpreter._get_ops_details() if o["op_name"] == "AVERAGE_POOL_2D"]
    rows: list[tuple[str, float, float, bool]] = []
    steps = 0.0
    features: list[tuple[Tensor, Tensor]] = []
    for name, path in images:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float()
        pixels = functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        pixels = (pixels + 0.501).floor().clamp(0, 255)  # as third_party_features
        interpreter.set_tensor(entry["index"], pixels.byte().permute(0, 2, 3, 1).contiguous().numpy())
        interpreter.invoke()
        maps = dequantized(interpreter, int(pooling["inputs"][0])).mean(dim=(1, 2))[0]  # before the pool rounds again
        pooled = dequantized(interpreter, int(pooling["outputs"][0])).flatten()
        with true_float32(torch.device("cpu")):
            ours = network(pixels)[0]
            same = int(network.linear(ours).argmax()) == int(interpreter.get_tensor(exit_["index"])[0].argmax())
            if len(rows) % 30 == 0:
                steps = max(steps, layer_difference(interpreter, network))
        cosine = [float(functional.cosine_similarity(ours, theirs, dim=0)) for theirs in (pooled, maps)]
        rows.append((name, cosine[0], cosine[1], same))
        features.append((ours, maps))

    def figures(chosen: list[tuple[str, float, float, bool]]) -> dict[str, Any]:
        cosines = torch.tensor([row[1:3] for row in chosen], dtype=torch.float64)
        return {
            "num_images": len(chosen),
            "cosine": {"least": cosines[:, 0].min().item(), "mean": cosines[:, 0].mean().item()},
            "cosine_before_rounding_the_mean": {
                "least": cosines[:, 1].min().item(),
                "mean": cosines[:, 1].mean().item(),
            },
            "same_class": sum(row[3] for row in chosen) / len(chosen),
        }

    a, b = (torch.stack(side).double() for side in zip(*features, strict=True))
    middle = b.mean(dim=0)
    centred = functional.cosine_similarity(a - middle, b - middle)
    return {
        "all": figures(rows),
        "layer_difference_in_steps": steps,
        "cosine_about_the_mean_image": {"least": centred.min().item(), "mean": centred.mean().item()},
        **{name: figures([row for row in rows if row[0] == name]) for name in dict.fromkeys(row[0] for row in rows)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="int8 MobileNet-v2 to float32 weights.")
    parser.add_argument("--tflite", type=Path, default=TFLITE)
    parser.add_argument("--out", type=Path, required=True, help=f"folder that gets {MOBILENET_V2_FILE}")
    parser.add_argument("--check", type=Path, nargs="+", default=[], help="folders of images to compare on")
    parser.add_argument("--num", type=int, default=100, help="images to compare on")
    options = parser.parse_args()
    interpreter = open_tflite(options.tflite)
    sha256 = hashlib.sha256(options.tflite.read_bytes()).hexdigest()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / MOBILENET_V2_FILE
    save_file(converted(interpreter).state_dict(), path, {TFLITE_HASH: sha256})
    result: dict[str, Any] = {"file": str(path), TFLITE_HASH: sha256}
    if options.check:
        network = load_mobilenet_v2(path).eval().requires_grad_(False)
        result["check"] = compare(interpreter, network, pick_images(options.check, options.num))
    print(json.dumps(result))  # noqa: T201 (the result)


if __name__ == "__main__":
    main()

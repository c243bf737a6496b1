"""What is worth keeping of a finished study, as one small archive: results, journals, report, pictures and the tuned pair as model files.

    python benchmarks/collect_study.py STUDY_FOLDER ARCHIVE.tar.xz [--most BYTES]

Snapshots and features stay behind. Over --most (16,000,000) the pictures are left out, then the report's. The archive appears whole or
not at all. `python -m autoguidance.zoo.shipping FOLDER/pair NAME --card card.md` makes a pair of it that comes with the package.
"""

import argparse
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from autoguidance.zoo import Pair
from autoguidance.zoo.names import write_model

_LEFT_BEHIND = {"reference.npz", "pair.json", ".lock"}
_DISPENSABLE = ("images", "report.html")


def copy_study(study: Path, target: Path) -> None:
    """Copy what is worth keeping; a folder of several studies with each of them."""
    target.mkdir(parents=True)
    for item in study.iterdir():
        if item.is_file() and item.name not in _LEFT_BEHIND:
            shutil.copy(item, target)
        elif (item / "study.json").exists():
            copy_study(item, target / item.name)
        elif item.name in ("images", "diagnoses"):
            shutil.copytree(item, target / item.name)
        elif (item / "log.jsonl").exists():
            (target / item.name).mkdir()
            for name in ("log.jsonl", "config.json"):
                shutil.copy(item / name, target / item.name)
    if (study / "pair.json").exists():
        pair = Pair.load(study / "pair.json")
        (target / "pair").mkdir()
        files = {role: target / "pair" / f"{role}.safetensors" for role in ("main", "guide")}
        for role, file in files.items():
            write_model(str(getattr(pair, role)), file)
        replace(pair, main=str(files["main"]), guide=str(files["guide"])).save(target / "pair" / "pair.json")


def pack(folder: Path, archive: Path, most: int) -> None:
    """Write the archive, with less in it where it would be larger than `most` bytes."""
    temporary = archive.with_name(f".{archive.name}")
    for name in (None, *_DISPENSABLE):
        if name is not None:
            for found in list(folder.rglob(name)):
                shutil.rmtree(found) if found.is_dir() else found.unlink()
        with tarfile.open(temporary, "w:xz", preset=1) as tar:
            tar.add(folder, arcname=archive.name.removesuffix(".tar.xz"))
        if temporary.stat().st_size <= most:
            break
    temporary.replace(archive)
    print(f"{archive}: {archive.stat().st_size:,} bytes")  # noqa: T201 (a script)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("study", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--most", type=int, default=16_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy_study(options.study, Path(folder) / "study")
        pack(Path(folder) / "study", options.archive, options.most)

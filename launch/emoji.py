"""Makes a folder of class folders out of pictures of emoji: small colour images with labels, in two splits.

    python launch/emoji.py data/emoji [--side 128]

It takes two packages by npm, 16 MB: the pictures are Microsoft's Fluent Emoji, of 256 x 256 pixels (MIT), the classes
are Unicode's groups of emoji (unicode-emoji-json, MIT). Skin tones are left out, and so are flags, of which Microsoft
has none. Variants of one emoji, such as a woman and a man who run, are in one split. About a fifth of all images is
`test`.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from shutil import which

from PIL import Image

PICTURES, GROUPS = "@lobehub/fluent-emoji-3d@1.1.0", "unicode-emoji-json@0.9.0"
LEFT_OUT = "Flags"  # a group; the package has pictures of them that are not Microsoft's
PERSONS = {0x1F468, 0x1F469, 0x1F9D1}  # man, woman, person: beside another sign they only say who does it
SILENT = {0x200D, 0xFE0F}  # joins two signs; asks for a picture in colour
VARIANTS = PERSONS | SILENT | {0x2640, 0x2642, 0x27A1}  # female, male, turned to the right


def main(argv: Sequence[str]) -> None:
    """Makes the folder and prints how many images each class has."""
    parser = ArgumentParser("emoji.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--side", type=int, default=128, help="of the images, in pixels; default: 128")
    arguments = parser.parse_args(argv[1:])
    if arguments.folder.exists() and (not arguments.folder.is_dir() or any(arguments.folder.iterdir())):
        parser.error(f"{arguments.folder} is no empty folder: expected one, or a new one")
    if arguments.side < 1:
        parser.error(f"--side is {arguments.side}: expected at least 1")
    if which("npm") is None:
        parser.error("npm is not installed: it brings the pictures (apt-get install npm)")
    with tempfile.TemporaryDirectory() as place:
        try:
            fetched = [package(name, place) for name in (PICTURES, GROUPS)]
        except subprocess.CalledProcessError as error:
            parser.error(f"npm could not bring {error.cmd[-3]}, and says why above")
        pictures = {signs_of(file.stem): file for file in (fetched[0] / "assets").glob("*.webp")}
        emoji = json.loads((fetched[1] / "data-by-emoji.json").read_text())
        counts, drawn = Counter(), set()
        for text, entry in emoji.items():
            signs = tuple(map(ord, text))
            file = pictures.get(shown(signs))
            if file is None or entry["group"] == LEFT_OUT:
                continue
            picture = on_white(file, arguments.side)
            if picture.tobytes() in drawn:  # a cat's face is the grinning cat
                continue
            drawn.add(picture.tobytes())
            where = Path(split_of(signs), entry["group"].lower().replace(" & ", "_"))
            (arguments.folder / where).mkdir(parents=True, exist_ok=True)
            picture.save(arguments.folder / where / f"{entry['slug']}.png")
            counts[where] += 1
    for where, count in sorted(counts.items()):
        print(f"{count:5} {where}")


def package(name: str, place: str) -> Path:
    """The unpacked package."""
    command = ["npm", "pack", "--loglevel=error", name, "--pack-destination", place]
    file = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    folder = Path(place, file).with_suffix("")
    with tarfile.open(Path(place, file)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def signs_of(name: str) -> tuple[int, ...]:
    """The signs that the name of a picture lists, such as 1f3c3-200d-2640-fe0f."""
    return shown(tuple(int(part, 16) for part in name.split("-")))


def shown(signs: tuple[int, ...]) -> tuple[int, ...]:
    """The signs without those that change no picture: files and Unicode's list differ in them."""
    return tuple(sign for sign in signs if sign not in SILENT)


def split_of(signs: tuple[int, ...]) -> str:
    """The split of an emoji, by a hash of what it shares with its variants."""
    base = [sign for sign in signs if sign not in VARIANTS]
    return "train" if blake2b(repr(base).encode(), digest_size=8).digest()[0] % 5 else "test"


def on_white(file: Path, side: int) -> Image.Image:
    picture = Image.open(file).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main(sys.argv)

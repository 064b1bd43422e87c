"""Whatever lies in a gallery, reading it gives an answer or a ValueError: 1,400 cases of pictures, captions and metadata."""
from __future__ import annotations

import io
import json
import random
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hotlora.trainer.captions import decode_text, read_metadata, read_sidecar
from hotlora.trainer.gallery import Gallery, read_gallery
from hotlora.trainer.pictures import UnreadablePicture, check_picture, read_alpha, read_picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF")
SENTENCES = ("一个女孩站在窗边，阳光柔和", "一個女孩站在窗邊，陽光柔和", "une élève très douée, été", "a photo of a cat", "猫 🐈 と犬")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "big5", "cp1252", "latin-1")
FRAGMENTS = (b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud800", b"1e999",
             b"NaN", b"null", b"../", b"C:\\", b"\xe2\x80\xa8", b"\x81\x30\x81\x30", b"file_name", b"text", b" " * 50, b"9" * 5000, b"[" * 3000)


def mutated(data: bytes, rng: random.Random, fragments: tuple[bytes, ...] = ()) -> bytes:
    """The bytes after one to six of: cut off, flip, overwrite, drop, double, insert."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        span = rng.choice((1, 2, 4, 16, 64))
        action = rng.randrange(6)
        if action == 0 and rng.random() < 0.5:
            del data[at:]
        elif action == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            data[at:at + span] = rng.randbytes(span)
        elif action == 3:
            del data[at:at + span]
        elif action == 4:
            data[at:at] = data[at:at + span]
        else:
            data[at:at] = rng.choice(fragments) if fragments else rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"IDAT", b"Exif"))
    return bytes(data)


@lru_cache(maxsize=None)
def real_files() -> tuple[bytes, ...]:
    """Small pictures of every format and mode, with EXIF where it is held."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(np.kron(rng.integers(0, 255, (6, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    Image.init()
    files = []
    for form in FORMATS:
        if form not in Image.SAVE:
            continue
        modes = {"JPEG": ("RGB", "L", "CMYK"), "BMP": ("RGB", "P", "1"), "GIF": ("P",), "PNG": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")}
        for mode in modes.get(form, ("RGB", "RGBA")):
            picture = Image.fromarray(rng.integers(0, 65535, (24, 32), np.uint16)) if mode == "I;16" else rgb.convert(mode)
            stream = io.BytesIO()
            options = {"exif": exif.tobytes()} if form in ("JPEG", "PNG", "WEBP") else {}
            picture.save(stream, form, **options)
            files.append(stream.getvalue())
    progressive = io.BytesIO()
    rgb.save(progressive, "JPEG", progressive=True)
    animation = io.BytesIO()
    rgb.save(animation, "GIF", save_all=True, append_images=[rgb.rotate(180)], transparency=3)
    return (*files, progressive.getvalue(), animation.getvalue())


def with_valid_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that what was changed inside gets as far as the decoder."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = min(struct.unpack(">I", data[at:at + 4])[0], len(data) - at - 12)
        body = data[at + 4:at + 8 + length]
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", range(6))
def test_100_mutated_pictures(tmp_path: Path, block: int) -> None:
    rng = random.Random(block)
    path = tmp_path / "x.png"
    read = refused = 0
    for _ in range(100):
        data = mutated(rng.choice(real_files()), rng)
        path.write_bytes(with_valid_checksums(data) if rng.random() < 0.7 else data)
        try:
            facts = check_picture(path.read_bytes(), max_megapixels=20)
        except UnreadablePicture as error:
            refused += 1
            assert str(error)
            with pytest.raises(UnreadablePicture):
                read_picture(path, max_megapixels=20)
            continue
        picture, alpha = read_picture(path, max_megapixels=20), read_alpha(path, max_megapixels=20)
        read += 1
        assert picture.mode == "RGB" and picture.size == (facts.width, facts.height)
        assert (alpha is not None) == facts.has_alpha and (alpha is None or alpha.size == picture.size)
    assert read >= 10 and refused >= 10


@pytest.mark.parametrize("block", range(4))
def test_100_mutated_captions(tmp_path: Path, block: int) -> None:
    rng = random.Random(100 + block)
    path = tmp_path / "x.txt"
    for _ in range(100):
        data = rng.choice(SENTENCES).encode(rng.choice(ENCODINGS), "replace")
        data = rng.randbytes(rng.randrange(200)) if rng.random() < 0.1 else mutated(data, rng, FRAGMENTS)
        path.write_bytes(data)
        try:
            caption = read_sidecar(path)
        except ValueError as error:
            assert "x.txt cannot be read" in str(error)
            with pytest.raises(ValueError):
                decode_text(data)
            continue
        assert caption.encode("utf-8").decode("utf-8") == caption and "\n" not in caption and "\0" not in caption
        assert caption == caption.strip()


def table(rng: random.Random) -> tuple[str, str]:
    """A metadata file's suffix and text as people write them."""
    rows = [(rng.choice(("a.png", "x/b.png", "b", "图.png", "C:\\c.png", "gone.png")), rng.choice(SENTENCES)) for _ in range(rng.randint(0, 5))]
    names = rng.choice((("file_name", "text"), ("image", "prompt"), ("file", "caption"), ("name", "text")))
    if rng.random() < 0.5:
        return ".jsonl", "\n".join(json.dumps(dict(zip(names, row)), ensure_ascii=rng.random() < 0.5) for row in rows)
    delimiter = rng.choice(",;\t")
    return ".csv", rng.choice(("\n", "\r\n")).join(delimiter.join(f'"{cell}"' if rng.random() < 0.5 else cell for cell in row) for row in [names, *rows])


@pytest.mark.parametrize("block", range(3))
def test_100_mutated_tables(tmp_path: Path, block: int) -> None:
    rng = random.Random(200 + block)
    for _ in range(100):
        suffix, text = table(rng)
        data = text.encode(rng.choice(ENCODINGS), "replace")
        path = tmp_path / f"metadata{suffix}"
        path.write_bytes(mutated(data, rng, FRAGMENTS) if rng.random() < 0.8 else data)
        try:
            captions = read_metadata(path)
        except ValueError as error:
            assert path.name in str(error)
            continue
        assert all(isinstance(name, str) and name and isinstance(caption, str) for name, caption in captions.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery whose metadata, captions and last picture the cases replace."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "x").mkdir()
    for name in ("a.png", "x/b.png", "图.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", range(2))
def test_50_galleries(folder: Path, block: int) -> None:
    rng = random.Random(300 + block)
    for _ in range(50):
        for suffix in (".csv", ".jsonl"):
            (folder / f"metadata{suffix}").unlink(missing_ok=True)
        suffix, text = table(rng)
        data = text.encode(rng.choice(ENCODINGS), "replace")
        (folder / f"metadata{suffix}").write_bytes(mutated(data, rng, FRAGMENTS) if rng.random() < 0.5 else data)
        (folder / "a.txt").write_bytes(mutated(rng.choice(SENTENCES).encode(rng.choice(ENCODINGS), "replace"), rng, FRAGMENTS))
        (folder / "x" / "b_mask.png").write_bytes(mutated(rng.choice(real_files()), rng))
        (folder / "odd.png").write_bytes(mutated(rng.choice(real_files()), rng))
        try:
            gallery = read_gallery(folder, trigger=rng.choice(("", "sks", "小红", "(")), masks=rng.random() < 0.5)
        except ValueError as error:
            assert "metadata" in str(error)
            continue
        assert isinstance(gallery, Gallery) and gallery.report().encode("utf-8")
        assert len(gallery.examples) + len(gallery.skipped) == 4 and len(gallery.examples) >= 2
        assert sum(gallery.caption_sources.values()) == len(gallery.examples)

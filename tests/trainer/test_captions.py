"""Captions come out the same whatever encoding and whatever form of table they were written in."""
from __future__ import annotations

import codecs
import json
import unicodedata
from pathlib import Path

import pytest

from hotlora.trainer.captions import decode_text, read_metadata, read_sidecar
from hotlora.trainer.captions.sidecar import tidy

SIMPLIFIED = [
    "一个女孩", "黑猫", "一只黑色的猫坐在窗台上", "穿着红色连衣裙的年轻女子站在海边，夕阳西下", "水墨画风格的山水，云雾缭绕，远处有一座小亭子",
    "sks女孩，长发，微笑，白色衬衫", "动漫风格, 1girl, 蓝色眼睛, 双马尾", "一张老人的黑白肖像照片，皱纹清晰可见，光线柔和",
    "特写镜头：一杯冒着热气的咖啡放在木桌上。", "城市夜景，霓虹灯，雨后的街道倒映着灯光", "赛博朋克", "可爱的柴犬", "宫崎骏动画风格的草原"]
TRADITIONAL = [
    "一個女孩", "一隻黑色的貓坐在窗台上", "穿著紅色洋裝的年輕女子站在海邊，夕陽西下", "水墨畫風格的山水，雲霧繚繞，遠處有一座小亭子",
    "sks女孩，長髮，微笑，白色襯衫", "動漫風格, 1girl, 藍色眼睛, 雙馬尾", "一張老人的黑白肖像照片，皺紋清晰可見，光線柔和",
    "城市夜景，霓虹燈，雨後的街道倒映著燈光", "可愛的柴犬在草地上奔跑", "這是我家裡的貓。"]
EUROPEAN = [
    "une fille à la plage, été", "Un chat noir assis près de la fenêtre", "ein Mädchen mit grünen Augen", "Größe", "café", "naïve",
    "die schöne Straße führt über den Fluß", "portrait d’une élève, très détaillé, lumière douce", "el niño come una manzana, mañana",
    "une œuvre d'art – peinture à l'huile", "Ölgemälde einer alten Mühle", "a girl’s “smile”", "garçon", "Über den Dächern von Köln",
    "à côté de l'église", "ÉTÉ À LA PLAGE", "Fußgänger überqueren die Brücke"]


@pytest.mark.parametrize("text", SIMPLIFIED)
def test_gb18030(text: str) -> None:
    assert decode_text(text.encode("gb18030")) == text


@pytest.mark.parametrize("text", TRADITIONAL)
def test_big5(text: str) -> None:
    assert decode_text(text.encode("big5")) == text


@pytest.mark.parametrize("text", EUROPEAN)
def test_cp1252(text: str) -> None:
    assert decode_text(text.encode("cp1252")) == text


@pytest.mark.parametrize("text", SIMPLIFIED + TRADITIONAL + EUROPEAN + ["", "a cat", "猫 🐈 と犬", "кошка на окне", "고양이"])
@pytest.mark.parametrize("encoding, mark", [("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE),
                                            ("utf-16-be", codecs.BOM_UTF16_BE), ("utf-32-le", codecs.BOM_UTF32_LE)])
def test_unicode_with_and_without_mark(text: str, encoding: str, mark: bytes) -> None:
    assert decode_text(mark + text.encode(encoding)) == text


@pytest.mark.parametrize("text", ["a photo of a cat", *EUROPEAN, *(text for text in SIMPLIFIED + TRADITIONAL if len(text) >= 8)])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_mark(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding)) == text


def test_whole_tables_in_other_encodings() -> None:
    for texts, encoding in ((SIMPLIFIED, "gb18030"), (TRADITIONAL, "big5"), (EUROPEAN, "cp1252")):
        table = "file_name,text\n" + "".join(f'picture_{i}.png,"{text}"\n' for i, text in enumerate(texts))
        assert decode_text(table.encode(encoding)) == table


@pytest.mark.parametrize("data", [bytes(range(256)), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0", b"\xff\xfe\x00", b"\xff\xfe\x00\xd8", b"\x81\x00\x81"])
def test_no_text_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        decode_text(data)


def test_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_bytes("\ufeff  一个女孩,\r\n 微笑  \r\n\r\n".encode("utf-8"))
    assert read_sidecar(path) == "一个女孩, 微笑"
    path.write_bytes(b"")
    assert read_sidecar(path) == ""
    path.write_bytes(b"a" * 1_000_001)
    with pytest.raises(ValueError, match="a b.txt is larger than a megabyte"):
        read_sidecar(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="a b.txt cannot be read"):
        read_sidecar(path)
    with pytest.raises(ValueError, match="gone.txt cannot be opened"):
        read_sidecar(tmp_path / "gone.txt")


def test_tidy() -> None:
    assert tidy("cat\nblack\nindoors") == "cat, black, indoors"
    assert tidy("A cat sits.\nIt is black.") == "A cat sits. It is black."
    assert tidy("a\tb  c\0d\ufeff") == "a b c d"
    assert tidy(unicodedata.normalize("NFD", "été")) == "été"
    assert tidy("a \ud800 b").encode("utf-8") == b"a b"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("name_column", ["file_name", "image", "file", " File_Name "])
@pytest.mark.parametrize("caption_column", ["text", "caption", "prompt", "Caption"])
def test_columns(tmp_path: Path, name_column: str, caption_column: str) -> None:
    path = write(tmp_path / "metadata.csv", f"id,{caption_column},{name_column}\n1,a cat,a.png\n2,a dog,b.png\n")
    assert read_metadata(path) == {"a.png": "a cat", "b.png": "a dog"}
    row = {"id": 1, caption_column: "a cat", name_column: "a.png"}
    assert read_metadata(write(tmp_path / "metadata.jsonl", json.dumps(row) + "\n\n")) == {"a.png": "a cat"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_dialects(tmp_path: Path, delimiter: str, newline: str, encoding: str) -> None:
    rows = [f"file_name{delimiter}text", f'图.png{delimiter}"一只猫, ""黑""; 可爱\t的"', f"b.png{delimiter}一个女孩站在窗边"]
    path = write(tmp_path / "metadata.csv", newline.join(rows) + newline, encoding)
    assert read_metadata(path) == {"图.png": '一只猫, "黑"; 可爱 的', "b.png": "一个女孩站在窗边"}


def test_commas_without_quotes(tmp_path: Path) -> None:
    assert read_metadata(write(tmp_path / "m.csv", "file_name,text\na.png,a cat, black, 5\" tall\n")) == {"a.png": 'a cat, black, 5" tall'}
    with pytest.raises(ValueError, match="m.csv, line 2: 4 values for 2 columns; put the caption in double quotes"):
        read_metadata(write(tmp_path / "m.csv", "text,file_name\na, cat, black,a.png\n"))


def test_rows_that_lack_something(tmp_path: Path) -> None:
    assert read_metadata(write(tmp_path / "m.csv", "file_name,text\n\na.png\n,nothing\nb.png,x,,\n")) == {"a.png": "", "b.png": "x"}
    assert read_metadata(write(tmp_path / "e.csv", "")) == {}
    assert read_metadata(write(tmp_path / "n.jsonl", '{"file_name": "a", "text": null}')) == {"a": ""}
    assert read_metadata(write(tmp_path / "d.csv", "file_name,text\na,first\na,second\n")) == {"a": "first"}


@pytest.mark.parametrize("name, text, reason", [
    ("m.csv", "name,words\na,b\n", "none of file_name, image, file is among the columns .name, words."),
    ("m.csv", "file_name,words\na,b\n", "none of text, caption, prompt"),
    ("m.csv", 'file_name,text\na.png,"open\nb.png,x\n', "double quote is opened and never closed"),
    ("m.jsonl", '{"file_name": "a", "text": "b"}\n{"file_name": ', "line 2: this is not JSON"),
    ("m.jsonl", '["a", "b"]', "line 1: every line must be an object"),
    ("m.jsonl", '{"file_name": "a", "text": 5}', "line 1: text must be text, not 5"),
    ("m.jsonl", "[" * 100_000, "line 1: this is not JSON"),
    ("m.jsonl", '{"file": "a"}', "none of text, caption, prompt"),
    ("m.json", "{}", "must end in .csv or .jsonl")])
def test_errors_name_the_place(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_metadata(write(tmp_path / name, text))


def test_missing_metadata(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone.csv cannot be opened"):
        read_metadata(tmp_path / "gone.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="folder.csv cannot be opened"):
        read_metadata(tmp_path / "folder.csv")

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotlora.trainer.names import MAX_BYTES, check_name, safe_name

GOOD = [
    "my_face",
    "a",
    "7",
    "Anna 2.1",
    "v1.0-final",
    "我的脸",
    "Ünal",
    "हिन्दी",
    "Ελένη",
    "COM10",
    "console",
    "a" * MAX_BYTES,
    "脸" * 40,
]
BAD = {
    "": "letter",
    "___": "letter",
    "   ": "letter",
    "a/b": "'/'",
    "a\\b": "'\\\\'",
    "../x": "'/'",
    "a:0.5": "':'",
    "a>b": "'>'",
    "what?": "'?'",
    "a\nb": "'\\n'",
    "a\0": "'\\x00'",
    "CON": "reserved",
    "nul.txt": "reserved",
    "com1": "reserved",
    "Lpt9 .x": "reserved",
    ".hidden": "dot",
    "x.": "dot",
    " x": "space",
    "x ": "space",
    "a" * (MAX_BYTES + 1): "121 bytes",
    "脸" * 41: "123 bytes",
    "e\u0301te": "decomposed",
    "face.safetensors": "added to every name",
    "face.SafeTensors": "added to every name",
    "smile😀": "'😀'",
    "a\u200bb": "u200b",
    "COM¹": "'¹'",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_kept(name):
    assert check_name(name) == name
    assert safe_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_with_the_reason_and_a_name_that_will_do(name):
    with pytest.raises(ValueError, match="use '.+' instead") as error:
        check_name(name)
    assert BAD[name] in str(error.value)
    suggestion = safe_name(name)
    assert repr(suggestion) in str(error.value)
    assert check_name(suggestion) == suggestion


def test_what_is_not_text_is_refused():
    with pytest.raises(ValueError, match="is not text"):
        check_name(None)


@pytest.mark.parametrize(
    "text, name",
    [
        ("a/b", "a_b"),
        ("my face?!.safetensors", "my face_"),
        ("", "lora"),
        ("con", "lora_con"),
        ("e\u0301", "é"),
        ("10:30", "10_30"),
        ("x" * 200, "x" * 120),
        ("  photos. ", "photos"),
        ("😀", "lora"),
    ],
)
def test_the_nearest_safe_name(text, name):
    assert safe_name(text) == name


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet="con.aux _1/e\u0301safetensors脸", max_size=140)))
def test_any_text_becomes_a_good_name(text):
    name = safe_name(text)
    assert check_name(name) == name
    assert safe_name(name) == name
    assert unicodedata.is_normalized("NFC", name)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60))
def test_the_file_system_keeps_the_name(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("names")
    (folder / f"{safe_name(text)}.safetensors").write_bytes(b"")
    assert [path.stem for path in folder.iterdir()] == [safe_name(text)]

import pytest

from cytominer_tools.errors import InputError
from deepprofile.yaml import read_yaml


def read(folder, text):
    path = folder / "study.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    "word",
    [
        "NO",
        "no",
        "yes",
        "on",
        "Off",
        "True",
        "FALSE",
        "y",
        "n",
        "0012",
        "-012",
        "+007",
        "00.5",
        "12:30",
        "1:2:3.5",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "1_000",
        "0x1F",
        "0o17",
        "0b1",
        "1e",
        "1.2.3",
        ".",
        "-",
        ".inf",
        ".nan",
        "Null",
        "NULL",
        "A01",
        "=",
        "1e5x",
    ],
)
@pytest.mark.parametrize("head", ["", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n"])
def test_an_identifier_is_text(word, head, tmp_path):
    if word != "-":  # alone, that is a list
        assert read(tmp_path, f"{head}a: {word}\nb: [{word}]\n{word}: c\n") == {"a": word, "b": [word], word: "c"}
    assert read(tmp_path, f"a: '{word}'\n") == {"a": word}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("0", 0), ("-3", -3), ("+5", 5), ("128", 128), ("0.1", 0.1), ("-.5", -0.5), ("1.", 1.0), ("1e3", 1000.0)],
        *[("1E-3", 0.001), ("0.0", 0.0), ("true", True), ("false", False), ("null", None), ("~", None), ("", None)],
    ],
)
def test_numbers_true_false_and_nothing(word, value, tmp_path):
    found = read(tmp_path, f"a: {word}\n")["a"]
    assert found == value
    assert type(found) is type(value)


def test_text_in_any_script_with_a_byte_order_mark(tmp_path):
    assert read(tmp_path, "\ufeffa: Größe 細胞\n") == {"a": "Größe 細胞"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3: .*duplicate key "a"'),
        ("a:\n  x: 1\n  x: 2\n", 'line 3: .*duplicate key "x"'),
        ("a: 1\nb: !!python/object/apply:os.system [echo]\n", "line 2: .*python/object/apply"),
        ("a: !!python/name:os.system\n", "line 1: .*python/name"),
        ("a: !!python/object/new:os.system {}\n", "line 1: .*python/object/new"),
        ("a: !mine 1\n", "line 1: .*!mine"),
        ("a: [1,\nb: 2\n", "line 3: .*expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "line 2: .*cannot start"),
        ("a: 1\n---\nb: 2\n", "line 2: .*another document"),
        ("a: 'x\n", "line 2: .*unexpected end"),
        ("a: \x07\n", "special characters are not allowed"),
        (b"a: \xff\n", "utf-8"),
        ("- 1\n", "expected a mapping of settings, got list"),
        ("", "expected a mapping of settings, got NoneType"),
        ("text", "expected a mapping of settings, got str"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: &x [1]\nb: [*x, *x]\n", r"line 2: \*x is an alias; write it out"),
        ("a: &x [*x]\n", r"line 1: \*x is an alias"),
    ],
)
def test_what_is_refused_with_its_line(text, words, tmp_path):
    with pytest.raises(InputError, match=rf"(?s)study\.yaml: .*{words}"):
        read(tmp_path, text)


def test_no_file_and_no_readable_one(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "study.yaml", tmp_path / "file" / "study.yaml"):
        with pytest.raises(InputError, match=r"study\.yaml: no such file; `deepprofile init`"):
            read_yaml(path)
    with pytest.raises(InputError, match="cannot be read, Is a directory"):
        read_yaml(tmp_path)

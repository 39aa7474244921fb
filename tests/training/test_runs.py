"""Files are whole or not there, tables keep every digit, and digests see what matters."""

from __future__ import annotations

import ast
import hashlib
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pdunroll.errors import InputError
from pdunroll.files import atomic, digest, read_json, read_table, write_json, write_table
from pdunroll.training import code_digest
from pdunroll.training.code_digest import HOME, dump, source_digest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(caught) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def test_atomic_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    for content in ("first", "second"):
        with atomic(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
        assert names(path.parent) == ["file.txt"]


def test_atomic_removes_what_the_dead_have_left(tmp_path):
    path = tmp_path / "file.txt"
    dead = subprocess.Popen(["true"])
    dead.wait()
    with atomic(path) as temporary:
        temporary.write_text("whole")
    here = temporary.name.removesuffix(f".{os.getpid()}.partial")
    alive, elsewhere = f"{here}.{os.getppid()}.partial", f".file.txt.another.{dead.pid}.partial"
    for name in (alive, elsewhere, f"{here}.{dead.pid}.partial"):
        (tmp_path / name).write_text("half")
    with atomic(path) as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == sorted([alive, elsewhere, "file.txt"])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_atomic_keeps_the_old_file_if_writing_fails(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)

    def fail():
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["file.txt"] if old else [])
    if old:
        assert path.read_text() == old


def test_atomic_when_nothing_was_written(tmp_path):
    def write_nothing():
        with atomic(tmp_path / "file.txt"):
            pass

    with pytest.raises(FileNotFoundError):
        write_nothing()
    assert names(tmp_path) == []


def test_json_round_trip(tmp_path):
    path = tmp_path / "folder" / "file.json"
    content = {"b": [1, 2.5, None, True], "a": {"x": 0.1 + 0.2, "y": "ü"}}
    write_json(path, content)
    assert read_json(path) == content
    assert list(read_json(path)) == ["b", "a"]
    assert path.read_text().endswith("\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert read_json(path) == [1]
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_damaged_json_names_the_file(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(path) in one_line(caught)


def test_json_that_is_missing_or_a_folder_names_it(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError) as caught:
            read_json(path)
        assert str(path) in one_line(caught)


NUMBERS = [0.1, 1 / 3, 2.0, -0.0, 1e-300, 5e-324, 1.7976931348623157e308, 123456789.123456789, math.pi * 1e-7]


def test_table_round_trip(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    rows = [
        {"name": f"row, {number}", "mask": None, "count": number, "value": value, 'odd "key"': "a\nb"}
        for number, value in enumerate(NUMBERS)
    ]
    write_table(path, rows)
    again = read_table(path, "make it")
    assert again == rows
    assert [list(row) for row in again] == [list(row) for row in rows]
    for row, value in zip(again, NUMBERS, strict=True):
        assert type(row["count"]) is int
        assert type(row["value"]) is float
        assert row["value"].hex() == value.hex()
    assert names(path.parent) == ["table.csv"]


def test_table_of_special_numbers(tmp_path):
    write_table(tmp_path / "table.csv", [{"a": math.inf, "b": -math.inf, "c": math.nan, "d": -3, "e": 10**20}])
    (row,) = read_table(tmp_path / "table.csv", "make it")
    assert (row["a"], row["b"], row["d"], row["e"]) == (math.inf, -math.inf, -3, 10**20)
    assert math.isnan(row["c"])


def test_table_is_plain_csv(tmp_path):
    write_table(tmp_path / "table.csv", [{"a": 1, "b": None, "c": 0.1}, {"a": 2, "b": "x", "c": 1e-05}])
    assert (tmp_path / "table.csv").read_bytes() == b"a,b,c\n1,,0.1\n2,x,1e-05\n"


def test_table_with_other_keys_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.csv"
    write_table(path, [{"a": 1}])
    with pytest.raises(ValueError, match="b"):
        write_table(path, [{"a": 1}, {"a": 1, "b": 2}])
    assert path.read_bytes() == b"a\n1\n"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("content", [None, "", "a,b\n"], ids=["missing", "empty", "header only"])
def test_table_without_rows_names_the_file_and_its_command(tmp_path, content):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_table(path, "python -m pdunroll evaluate")
    text = one_line(caught)
    assert str(path) in text
    assert "`python -m pdunroll evaluate`" in text


def test_damaged_table_names_the_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\n1,\xff\xfe\n")
    with pytest.raises(InputError) as caught:
        read_table(path, "make it")
    assert str(path) in one_line(caught)


def test_digest_does_not_depend_on_the_order_of_keys():
    one = {"a": 1, "b": {"c": [1, 2], "d": None}}
    other = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert digest(one) == digest(other)
    assert digest({"b": 2, "a": 1}) == hashlib.sha256(b'{"a": 1, "b": 2}').hexdigest()


@pytest.mark.parametrize(
    "changed", [{"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1.0, "b": [1, 2]}, {"a": 1}, {}]
)
def test_digest_depends_on_the_content(changed):
    assert digest(changed) != digest({"a": 1, "b": [1, 2]})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of modules that `source_digest` reads."""
    for name in ("speech/quantizer", "core/problem", "errors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HOME / f"{name}.py", tmp_path / f"{name}.py")
    monkeypatch.setattr(code_digest, "HOME", tmp_path)
    return tmp_path


def fresh(*modules: str, **options) -> str:
    """The digest of what is on disk now."""
    source_digest.cache_clear()
    return source_digest(*modules, **options)


def test_source_digest_of_a_copy_is_that_of_the_package(package):
    copied = fresh("speech.quantizer", "core.problem")
    assert len(copied) == 64
    assert fresh("speech.quantizer", "core.problem") == copied
    assert fresh("speech.quantizer") != copied
    assert fresh("speech.quantizer") != fresh("core.problem")


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Uniform mid-rise', '"""Uniform and otherwise mid-rise'),
        ('    """Return half the width', '    """Return wholly half the width'),
        ('    """Return half the width', '    # a comment\n\n    """Return half the width'),
        ("    return (2.0 * codes", "    # a comment\n\n    return (2.0 * codes"),
        (
            "(2.0 * codes + 1.0) * radius(bits) - 1.0",
            "(\n        2.0*codes + 1.0\n    ) * (radius(bits)) - 1.0  # layout",
        ),
    ],
    ids=["module docstring", "docstring", "comment above docstring", "comment", "layout"],
)
def test_source_digest_leaves_out_what_does_nothing(package, old, new):
    before = fresh("speech.quantizer")
    edited(package / "speech/quantizer.py", old, new)
    assert fresh("speech.quantizer") == before


def test_programs_are_the_same_text_by_all_versions_of_python():
    """Literally, since newer versions than this one have more fields in a syntax tree, which are empty."""
    program = ast.parse('def f(a, *, b=None):\n    return f"{a:>{b}}", None, [], 1.5')
    assert dump(program) == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a')], kwonlyargs=[arg(arg='b')], "
        "kw_defaults=[Constant()]), body=[Return(value=Tuple(elts=[JoinedStr(values=[FormattedValue("
        "value=Name(id='a', ctx=Load()), conversion=-1, format_spec=JoinedStr(values=[Constant(value='>'), "
        "FormattedValue(value=Name(id='b', ctx=Load()), conversion=-1)]))]), Constant(), List(ctx=Load()), "
        "Constant(value=1.5)], ctx=Load()))])])"
    )
    (field,) = (node for node in ast.walk(program) if isinstance(node, ast.FormattedValue) and node.format_spec)
    text = dump(program)
    field.format_spec.values.append(ast.Constant(""))  # as Python 3.12.3 has it
    assert dump(program) == text


def test_source_digest_follows_imports(package):
    (package / "upper.py").write_text("def f():\n    from pdunroll import middle\n")
    (package / "middle.py").write_text("import numpy\nfrom pdunroll.lower import x\n")
    (package / "lower.py").write_text("x = 1\n")
    whole, without = fresh("upper"), fresh("upper", without=("lower",))
    assert fresh("pdunroll.upper") == whole != without
    (package / "lower.py").write_text("x = 2\n")
    assert fresh("upper") != whole
    assert fresh("upper", without=("lower",)) == without


@pytest.mark.parametrize("line", ["from pdunroll.layer import part", "from pdunroll.layer import part as other, x"])
def test_source_digest_follows_modules_imported_from_folders(package, line):
    (package / "layer").mkdir()
    (package / "layer/part.py").write_text("x = 1\n")
    (package / "upper.py").write_text(f"{line}\n")
    before = fresh("upper")
    (package / "layer/part.py").write_text("x = 2\n")
    assert fresh("upper") != before


def test_source_digest_of_modules_elsewhere(package, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "somewhere_else.py").write_text("from pdunroll.speech.quantizer import radius\n")
    before = fresh("somewhere_else")
    edited(package / "speech/quantizer.py", "return 2.0 **", "return 4.0 **")
    assert fresh("somewhere_else") != before
    with pytest.raises(InputError, match="nowhere_at_all"):
        fresh("nowhere_at_all")


def test_source_digest_without_any_docstring(package):
    (package / "a.py").write_text(
        '"""One."""\n\n\nclass A:\n    """Two."""\n\n    def f(self):\n        """Three."""\n'
    )
    (package / "b.py").write_text('"""1."""\nclass A:\n  """2."""\n  def f(self): "3"\n')
    assert fresh("a") == fresh("b")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(2.0 * codes + 1.0)", "(2.0 * codes + 1.5)"),
        ("half - 1) + half", "half - 2) + half"),
        ("return 2.0 **", "return -(2.0) **"),
        ("bits: int) -> float", "bits: int = 4) -> float"),
        ('"signal holds NaN', '"signal contains NaN'),
    ],
)
def test_source_digest_sees_code(package, old, new):
    before = fresh("core.problem", "speech.quantizer")
    edited(package / "speech/quantizer.py", old, new)
    assert fresh("core.problem", "speech.quantizer") != before

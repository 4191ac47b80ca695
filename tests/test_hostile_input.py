"""Input that is meant to hurt: what is read is bounded, and whatever a reader raises is a sentence."""

import errno
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from granplugin.__main__ import main
from granplugin.backends.nvidia.build import Options
from granplugin.backends.nvidia.plan_reader import read_plan, read_profile_json
from granplugin.backends.nvidia.trtexec import script
from granplugin.data.open import open_data
from granplugin.engines import EXPORTED
from granplugin.errors import DataError, EngineError, LackError, RecipeError, UserError
from granplugin.machine import lacking
from granplugin.reading import reading, why_unreadable
from granplugin.recipe.data import FolderSource, NpzSource
from granplugin.recipe.glob import automaton, matcher
from granplugin.recipe.load import MAX_BASES, load_recipe, load_variants
from granplugin.recipe.yaml_text import parse
from granplugin.stdout import Results, aside, results_to, say, say_json

BASE = "version: 1\nmodel: {callable: n.py:f}\ndata: {calibration: {npz: d.npz, inputs: {x: x}}}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("n.py").write_text("f = 1")
    Path("d.npz").write_bytes(b"x")
    return tmp_path


def refused(form) -> str:
    with pytest.raises(RecipeError) as caught:
        load_variants(load_recipe(form))
    return str(caught.value)


# Recipes


def test_a_file_that_is_extended_twice_on_each_of_many_levels_is_read_once(folder):
    for level in range(20):
        Path(f"b{level}.yaml").write_text(f"extends: [b{level + 1}.yaml, b{level + 1}.yaml]")
    Path("b20.yaml").write_text(BASE)
    assert load_recipe(Path("b0.yaml")).recipe.model
    Path("b20.yaml").write_text(BASE + "rules: [{match: a, bn: fold}]")
    assert re.match(r"b\d+\.yaml:1:\d+: with what it extends it has over", refused(Path("b0.yaml")))


def test_a_chain_of_bases_is_bounded(folder):
    for level in range(MAX_BASES + 2):
        Path(f"b{level}.yaml").write_text(f"extends: b{level + 1}.yaml")
    assert f"extends over {MAX_BASES} recipes" in refused(Path("b0.yaml"))


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "link", "/dev/stdin", "d/"])
def test_only_regular_files_are_opened(folder, name):
    os.mkfifo("fifo")
    Path("link").symlink_to("fifo")
    Path("d").mkdir()
    for text in (f"extends: {name}", BASE.replace("n.py:f", f"n.py:f, weights: {name}")):
        assert re.search(r"\d: \S+ is (not a regular file|a folder)", refused(text + "\n"))
    assert why_unreadable(Path(name))
    with pytest.raises(DataError, match="regular file|folder"):
        open_data(NpzSource(npz=Path(name), inputs={"x": "x"}), 1, 0, "calibration")


def _regex(glob: str) -> re.Pattern:
    meaning = {"**.": r"(?:.*\.)?", "**": r".*", "*": r"[^.]*", "?": r"[^.]"}
    parts = re.split(r"(\*\*\.|\*\*|\*|\?)", glob)
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


@given(st.text("ab.**?", max_size=9), st.text("ab.", max_size=9))
def test_a_glob_is_what_its_regular_expression_matches(glob, name):
    wanted = _regex(glob).fullmatch(name) is not None
    assert matcher(glob)(name) == automaton(glob).matches(name) == wanted


def test_stars_do_not_backtrack():
    start = time.process_time()
    assert not matcher("*" * 30 + "x")("features.3." * 20)
    assert not matcher("*e*t*r*s*d*e*t*h*w*z")("etrsdethw" * 100)
    assert matcher("*a" * 500)("a" * 1000)
    assert time.process_time() - start < 5  # the first alone took longer than anyone waited


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("!!float ''", "'' is no float"),
        ("!!int 0o7", "'0o7' is no int"),
        ("!!bool x", "'x' is no bool"),
        ("!!set {a}", "YAML tag"),
        ("!!python/object/apply:os.system [id]", "YAML tag"),
        ("!x [1]", "YAML tag"),
        ("*nowhere", "must be quoted"),
    ],
)
def test_a_tag_says_what_a_value_is_or_is_refused(value, said):
    with pytest.raises(RecipeError, match=r"^f:1:4: ") as caught:
        parse(f"a: {value}", "f")
    assert said in str(caught.value)
    assert parse("a: [!!str 1, !!int '2', ! 3]", "f")[0] == {"a": ["1", 2, "3"]}


@pytest.mark.parametrize(
    "target", ["os:system", "builtins:eval", "_pickle:loads", "subprocess:run"]
)
def test_a_callable_of_pythons_own_is_refused_at_its_line(folder, target):
    for key in ("model: {callable: %s}", "evaluate: %s"):
        text = BASE.replace("model: {callable: n.py:f}", key % target)
        said = refused(text if "model" in key else BASE + key % target)
        assert re.match(r"<recipe>:[24]:\d+: .*is Python's own", said)


# Data


def _npy(header: str, values: bytes) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def _npz(content: bytes) -> NpzSource:
    with zipfile.ZipFile("hostile.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return NpzSource(npz=Path("hostile.npz"), inputs={"x": "x"})


@pytest.mark.parametrize(
    "content",
    [
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,)}", b""),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", b""),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 0)}", b""),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n."),
        _npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", b"1234"),
        _npy("{'descr': '<f4', 'shape': -1}", b""),
        _npy("(" * 300, b""),
        b"",
        bytes(2**22),
    ],
    ids=range(9),
)
def test_an_array_is_no_larger_than_its_file_can_mean(folder, monkeypatch, content):
    monkeypatch.setattr("granplugin.data.npz._UNPACKED", 2**20)
    with pytest.raises(DataError, match="hostile.npz"):
        open_data(_npz(content), 1, 0, "calibration")


def test_an_images_size_is_looked_at_before_it_is_decoded(folder):
    from PIL import Image

    Path("images").mkdir()
    Image.new("L", (20000, 2)).save("images/a.png")
    source = FolderSource(folder=Path("images"), input="x", resize=4000)
    with pytest.raises(DataError, match="a.png, resized: 40000000x4000 pixels"):
        open_data(source, 1, 0, "calibration")
    Image.new("1", (20, 1)).save("images/a.tif")
    Path("images/a.png").unlink()
    tiff = bytearray(Path("images/a.tif").read_bytes())
    at = tiff.index(struct.pack("<HHII", 257, 4, 1, 1)) + 8  # ImageLength
    tiff[at : at + 4] = struct.pack("<I", 8_388_624)
    Path("images/a.tif").write_bytes(tiff)
    with pytest.raises(DataError, match="a.tif.*million|damaged"):
        open_data(FolderSource(folder=Path("images"), input="x"), 1, 0, "calibration")


@pytest.mark.parametrize("line", ["a.png,1" + "0" * 22, "a" * 200_000 + ",1", "\0,1", '"a'])
def test_a_line_of_labels_is_refused_at_its_place(folder, line):
    Path("images").mkdir()
    Path("images/a.png").write_bytes(b"")
    Path("l.csv").write_text(f"file,label\n{line}\n")
    source = FolderSource(folder=Path("images"), labels=Path("l.csv"), input="x")
    with pytest.raises(DataError, match=r"l\.csv") as caught:
        open_data(source, 1, 0, "calibration")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("reader", [read_plan, read_profile_json])
@given(data=st.data())
def test_an_engines_json_is_read_or_refused(reader, data):
    words = st.sampled_from(
        ["Layers", "Bindings", "I/O Tensors", "Name", "count", "timeMs", "name"]
    )
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | words,
        lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words, inside, max_size=4),
        max_leaves=12,
    )
    try:
        reader(json.dumps(data.draw(values)))
    except EngineError:
        pass


@pytest.mark.parametrize("text", ["[" * 100_000, '{"Layers": ' * 5000, "[" + "9" * 5000 + "]"])
def test_deep_json_and_long_numbers_are_refused(text):
    for reader in (read_plan, read_profile_json):
        with pytest.raises(EngineError):
            reader(text)


# The boundary


class Panic(BaseException):
    """As pyo3's, which is no Exception."""


@pytest.mark.parametrize("raised", [ValueError("x"), AssertionError(), RecursionError(), Panic()])
def test_whatever_a_reader_raises_is_one_sentence(raised):
    with pytest.raises(DataError, match="^a.npz: damaged$") as caught, reading("a.npz", DataError):
        raise raised
    assert caught.value.__cause__ is raised


def test_sentences_and_interrupts_pass_and_want_is_told_as_that():
    for passing in (UserError("said"), KeyboardInterrupt()):
        with pytest.raises(type(passing)), reading("a", DataError):
            raise passing
    wanted = "^a: cannot be read: there is not enough memory$"
    with pytest.raises(DataError, match=wanted), reading("a", DataError):
        raise MemoryError
    wrapped = RuntimeError("engine")
    wrapped.__cause__ = OSError(28, "No space left on device", "/x")
    assert lacking(wrapped) == "/x: No space left on device"
    assert lacking(np.exceptions.AxisError("axis 3")) is None


# Printing


class Broken(io.StringIO):
    """A stdout whose reader has gone, or whose disk is full."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("stream", [None, Broken(errno.EPIPE), Broken(errno.ENOSPC)])
def test_the_exit_code_is_the_verbs_whatever_becomes_of_stdout(folder, monkeypatch, capsys, stream):
    Path("good.yaml").write_text(BASE)
    monkeypatch.setattr("sys.stdout", stream)
    assert [main(["check", name]) for name in ("good.yaml", "none.yaml")] == [0, 2]
    full = isinstance(stream, Broken) and stream.number == errno.ENOSPC
    assert ("could not be written to stdout" in capsys.readouterr().err) is full


def test_what_other_code_prints_is_no_result(capsys):
    def verb() -> int:
        print("a library's word")
        say("the result")
        return 3

    with results_to(Results(sys.stdout)):
        assert aside(verb)() == 3
    assert capsys.readouterr() == ("the result\n", "a library's word\n")


@given(st.text(max_size=40))
def test_what_is_printed_cannot_steer_a_terminal_and_json_stays_exact(text):
    held = io.StringIO()
    with results_to(Results(held)):
        say(text)
        say_json(json.dumps({text: text}, ensure_ascii=False))
    told = held.getvalue()
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", told
    )
    assert json.loads(told.splitlines()[-1]) == {text: text}


def test_a_place_whose_name_is_no_text_is_one_sentence(folder, capsys):
    assert main(["check", "bad\udcff.yaml"]) == 2
    assert capsys.readouterr().err == "bad\\udcff.yaml: its name is not UTF-8; rename it\n"
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir(folder / "gone")
    assert main(["check", "r.yaml"]) == 2
    assert "does not exist any more" in capsys.readouterr().err
    os.chdir(folder)


# Scripts


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
@pytest.mark.parametrize(
    "name", ["a'b", "$(touch BAD)", "`touch BAD`", '";touch BAD;"', "a b", "*"]
)
def test_a_script_quotes_every_name(folder, shell, name):
    """It is run with a stand-in that keeps what it was told."""
    if not (program := shutil.which(shell)):
        pytest.skip(f"no {shell}")
    told = next(iter(EXPORTED.values()))[0]
    shapes = {name: ((1, 4), (2, 4), (4, 4))}
    text = script(told, f"{name}\ntouch BAD", [name], [name], shapes, [1], Options())
    Path("run.sh").write_text(text)
    assert subprocess.run([program, "-n", "run.sh"]).returncode == 0
    Path("tool").write_text(
        '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word" >> told\ncase $word in '
        '--saveEngine=*) : > "${word#*=}";; esac; done\n'
    )
    Path("tool").chmod(0o755)
    Path("manifest.json").write_text("{}")
    for batch in ("batch-000", "time-b1"):
        Path("inputs", batch).mkdir(parents=True)
        Path("inputs", batch, "shapes.txt").write_text("x:1")
    environment = {**os.environ, "TRTEXEC": str(folder / "tool"), "ROUNDS": "1"}
    subprocess.run([program, "run.sh"], env=environment, check=True, capture_output=True)
    assert not Path("BAD").exists()
    words = Path("told").read_text().splitlines()
    assert f"--onnx=variants/{name}/model.onnx" in words
    assert f"--loadInputs={name}:inputs/batch-000/{name}.bin" in words
    assert f"--minShapes={name}:1x4" in words


# The machine


def test_no_room_is_no_fault_of_a_layer(tmp_path):
    import resource

    from granplugin.runs.failed_build import _check_room

    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    _check_room(tmp_path, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(LackError, match="File too large"):
            _check_room(tmp_path, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

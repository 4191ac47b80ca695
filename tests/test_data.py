"""Batches from a recipe's sources: their order, their keys and every refusal."""

import os
import textwrap
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from granplugin.data.open import open_data
from granplugin.errors import DataError
from granplugin.recipe.data import CallableSource, FolderSource, NpzSource
from granplugin.recipe.strict import Target

RNG = np.random.default_rng(0)


def opened(source, batch_size=4, seed=0, names=()):
    return open_data(source, batch_size, seed, "calibration", names)


def joined(batches):
    listed = list(batches)
    return {name: np.concatenate([batch[name] for batch in listed]) for name in listed[0]}


def message(source, names=()) -> str:
    """Of the refusal, on opening or on reading; without where it is."""
    with pytest.raises(DataError) as caught:
        batches = opened(source, names=names)
        list(batches)
        batches.labels()
    said = str(caught.value)
    assert "\n" not in said and said.count(". ") == 0
    return said


@pytest.fixture
def npz(tmp_path):
    """Writes arrays; x and y unless told otherwise are 10 samples and their labels."""

    def make(samples=None, inputs=None, labels="y", **arrays) -> NpzSource:
        path = tmp_path / "data.npz"
        x = np.arange(20.0).reshape(10, 2)
        np.savez(path, **{"x": x, "y": np.arange(10), **arrays})
        inputs = {"image": "x"} if inputs is None else inputs
        return NpzSource(npz=path, inputs=inputs, labels=labels, samples=samples)

    return make


@pytest.fixture
def images(tmp_path):
    """Writes images: name -> (width, height) or a uint8 array."""

    def make(files, **keys) -> FolderSource:
        for name, pixels in files.items():
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(pixels, tuple):
                pixels = RNG.integers(0, 256, (pixels[1], pixels[0], 3), np.uint8)
            Image.fromarray(pixels).save(path)
        return FolderSource(folder=tmp_path / "images", input="image", **keys)

    return make


@pytest.fixture
def called(tmp_path):
    """Writes a file whose `batches` has the given body."""

    def make(body, samples=None, **args) -> CallableSource:
        names = "".join(f"{name}=None, " for name in args)
        text = f"import numpy as np\ndef batches({names}):\n" + textwrap.indent(body, "    ")
        path = tmp_path / "feed.py"
        path.write_text(text)
        target = Target(path=path, name="batches")
        return CallableSource(callable=target, args=args, samples=samples)

    return make


# Every source


@given(size=st.integers(1, 12), samples=st.none() | st.integers(1, 10), lengths=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_batch_size_changes_neither_samples_nor_labels_nor_key(
    npz, called, size, samples, lengths
):
    cuts = lengths.draw(st.lists(st.integers(0, 10), max_size=4).map(sorted))
    body = f"""
        for x, y in zip(np.split(np.arange(20.0).reshape(10, 2), {cuts}),
                        np.split(np.arange(10), {cuts})):
            yield {{"image": x}}, y
    """
    for source in (npz(samples), called(textwrap.dedent(body), samples)):
        batches, whole = opened(source, size), opened(source, 100)
        lengths_seen = [len(batch["image"]) for batch in batches]
        assert lengths_seen[:-1] == [size] * (len(lengths_seen) - 1)
        assert 1 <= lengths_seen[-1] <= size
        assert sum(lengths_seen) == batches.samples == (samples or 10)
        np.testing.assert_array_equal(joined(batches)["image"], joined(whole)["image"])
        np.testing.assert_array_equal(joined(batches)["image"][:, 0], 2 * batches.labels())
        assert batches.key() == whole.key()


def test_each_pass_gives_the_same_even_when_a_batch_is_changed_in_place(npz, images, called):
    folder = images({f"{i}.png": (3, 3) for i in range(6)})
    body = (
        "batches.x = getattr(batches, 'x', np.ones((6, 2), np.float32))\nyield {'image': batches.x}"
    )
    for source in (npz(), folder, called(body)):
        batches = opened(source)
        first = joined(batches)["image"].copy()
        for batch in batches:
            batch["image"] *= 3
        np.testing.assert_array_equal(joined(batches)["image"], first)


def test_floats_become_float32_and_integers_stay(npz, called):
    given = {"half": np.float16, "double": np.float64, "token": np.int32, "mask": np.bool_}
    arrays = {name: np.ones((3, 2), dtype) for name, dtype in given.items()}
    source = npz(x=np.ones(3), y=np.ones(3, int), inputs={n: n for n in given}, **arrays)
    fed = {
        name: f"np.ones((3, 2), np.{dtype.__name__.strip('_')})" for name, dtype in given.items()
    }
    fed = ", ".join(f"{name!r}: {code}" for name, code in fed.items())
    for data in (source, called(f"return [{{{fed}}}]".replace("np.bool)", "np.bool_)"))):
        kinds = {name: values.dtype.name for name, values in joined(opened(data)).items()}
        assert kinds == {
            "half": "float32", "double": "float32", "token": "int32", "mask": "bool"
        }  # fmt: skip


def test_a_name_that_forward_does_not_take_is_refused(npz, images, called):
    folder = images({"a.png": (3, 3)})
    for source in (npz(), folder, called("return [{'image': np.ones((2, 2))}]")):
        said = message(source, names=["imago", "scale"])
        assert said.endswith("the model's forward takes no 'image'; did you mean 'imago'?")


# Samples


@given(seed=st.integers(0, 2**32), samples=st.integers(1, 10))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_draw_is_without_replacement_in_order_and_decided_by_the_seed(npz, seed, samples):
    source = npz(samples)
    drawn = opened(source, seed=seed).labels()
    assert len(drawn) == samples and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, opened(source, seed=seed).labels())


def test_another_seed_draws_other_samples(npz, images):
    folder = images({f"{c}/{i}.png": (2, 2) for c in range(8) for i in range(2)}, samples=5)
    for source in (npz(5), folder):
        assert len({tuple(opened(source, seed=seed).labels()) for seed in range(20)}) > 5


def test_a_callable_gives_its_first_samples_and_is_not_asked_for_more(called):
    body = """
for start in range(0, 100, 4):
    assert start < 8
    yield np.arange(start, start + 4)[:, None]
"""
    batches = opened(called(body, samples=6), batch_size=5, names=["image"])
    assert joined(batches)["image"].ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_fewer_samples_than_asked_for_are_refused(npz, images, called):
    asked = "samples: 11 are asked for"
    assert message(npz(11)).endswith(f"data.npz: it has 10 samples, and {asked}")
    assert message(images({"a.png": (3, 3)}, samples=11)).endswith(f"it has 1 samples, and {asked}")
    source = called("yield {'image': np.ones((3, 2))}", samples=11)
    assert message(source).endswith(f"feed.py:batches: it gives 3 samples, and {asked}")


# Refusals of an .npz


def _with(values, index, value):
    values = values.copy()
    values[index] = value
    return values


X, Y = np.ones((10, 2)), np.arange(10)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"inputs": {"image": "images"}}, "there is no array 'images'; known: x, y"),
        ({"labels": "labls", "labels_": Y}, "there is no array 'labls'; did you mean 'labels_'?"),
        ({"x": _with(X, 7, np.nan)}, "array 'x' holds NaN, first in sample 7; remove it"),
        ({"x": X * 1e300}, "array 'x' holds Inf, first in sample 0; remove it"),
        ({"x": X[:9]}, "axis 0 counts the samples, but 'x' has 9, 'y' has 10"),
        ({"x": X[:0], "y": Y[:0]}, "there are no samples in it"),
        (
            {"x": np.float32(3)},
            "array 'x' is one number and has no axis of samples; make what is the same for all "
            "a constant of the network (docs/onnx-files.md)",
        ),
        ({"x": X.astype(str)}, "array 'x' has type <U32, not numbers"),
        ({"x": X.astype(complex)}, "array 'x' has type complex128, not numbers"),
        ({"y": X[:, 0]}, "array 'y' is float64 [10]; labels are one integer per sample"),
        ({"y": X.astype(int)}, "array 'y' is int64 [10, 2]; labels are one integer per sample"),
        ({"y": _with(Y, 3, -1)}, "array 'y' holds -1 at 3; classes count from 0"),
        (
            {"x": X.astype(object)},
            "array 'x' holds Python objects, which could run any code; save numbers",
        ),
    ],
)
def test_arrays_that_are_not_usable_are_refused(npz, tmp_path, arrays, said):
    assert message(npz(**arrays)) == f"calibration data {tmp_path / 'data.npz'}: {said}"


def test_sampling_keeps_the_number_of_the_sample_that_is_not_finite(npz):
    said = message(npz(9, x=_with(X, slice(5, 10), np.nan)))
    assert "holds NaN, first in sample 5;" in said or "first in sample 6;" in said


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _flip(path):
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("x.npy").header_offset
    data = bytearray(path.read_bytes())
    data[header + 200] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"x" * 99), "this is no .npz file; write one with"),
        (lambda path: np.save(path.open("wb"), X), "this is no .npz file; write one with"),
        (_cut, "this is no .npz file"),
        (_flip, "array 'x': the file is damaged"),
    ],
)
def test_a_file_that_is_no_npz_is_refused(npz, damage, said):
    source = npz()
    damage(source.npz)
    assert message(source).startswith(f"calibration data {source.npz}: {said}")


# Folders of images


def test_an_image_is_resized_cropped_and_normalized_as_pillow_does(images):
    pixels = RNG.integers(0, 256, (30, 40, 3), np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    source = images({"a.png": pixels}, resize=15, crop=10, mean=mean, std=std)
    resized = Image.fromarray(pixels).resize((20, 15), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[2:12, 5:15] / 255.0
    expected = ((expected - mean) / std).transpose(2, 0, 1)[None]
    image = joined(opened(source))["image"]
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)


def test_grayscale_has_one_channel(images):
    source = images({"a.png": np.full((4, 6, 3), 51, np.uint8)}, grayscale=True)
    np.testing.assert_allclose(joined(opened(source))["image"], np.full((1, 1, 4, 6), 0.2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_any_8_bit_mode_becomes_rgb(images, tmp_path, mode):
    source = images({"a.png": (5, 4)})
    name = "b.jpg" if mode == "CMYK" else "b.png"
    Image.open(tmp_path / "images" / "a.png").convert(mode).save(tmp_path / "images" / name)
    assert joined(opened(source))["image"].shape == (2, 3, 4, 5)


def test_subfolders_in_the_order_of_their_names_are_classes(images, tmp_path):
    source = images({"dog/1.png": (2, 2), "cat/2.png": (2, 2), "cat/deep/3.PNG": (2, 2)})
    (tmp_path / "images" / "bird").mkdir()
    (tmp_path / "images" / ".hidden").mkdir()
    assert opened(source).labels().tolist() == [1, 1, 2]


def test_images_without_subfolders_have_no_labels(images):
    assert opened(images({"b.png": (2, 2), "a.png": (2, 2)})).labels() is None


def test_a_label_file_decides_order_and_labels(images, tmp_path):
    (tmp_path / "labels.csv").write_text('file,label\n"b,1.png",7\n\na.png, 3\n')
    source = images(
        {"a.png": np.zeros((2, 2, 3), np.uint8), "b,1.png": np.full((2, 2, 3), 255, np.uint8)},
        labels=tmp_path / "labels.csv",
    )
    assert opened(source).labels().tolist() == [7, 3]
    assert joined(opened(source))["image"][:, 0, 0, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,1\ngone.png,2", "labels.csv:2: there is no image 'gone.png' in {folder}"),
        ("a.png", "labels.csv:1: 'a.png' is not file,label with a class number"),
        ("file,label\na.png,cat", "labels.csv:2: 'a.png,cat' is not file,label with a class"),
        ("a.png,-1", "labels.csv:1: 'a.png,-1' is not file,label with a class number"),
        ("\n", "there are no images in it"),
        (b"\xff\xfe\x00", "labels.csv: not UTF-8 text"),
        (None, "labels.csv: no such file"),
    ],
)
def test_a_label_file_that_is_wrong_is_refused_at_its_line(images, tmp_path, text, said):
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    source = images({"a.png": (3, 3)}, labels=path)
    assert said.format(folder=source.folder) in message(source)


def _text(path):
    path.write_text("no image")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def _deep(path):
    Image.fromarray(np.ones((4, 4), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("files", "keys", "damage", "said"),
    [
        ({}, {}, None, "no such folder"),
        ({"sub/a.png": (3, 3)}, {}, os.unlink, "there are no images in it (.bmp, .jpeg, "),
        ({"a.png": (4, 4), "sub/a.png": (4, 4)}, {}, None, "images both in it and in its subfold"),
        ({"a.png": (9, 9), "sub/a.png": (9, 9)}, {}, os.unlink, None),
        ({"a.png": (9, 9)}, {}, _text, "a.png is damaged or no image"),
        ({"a.png": (9, 9)}, {}, _truncate, "a.png is damaged or no image"),
        ({"a.png": (9, 9)}, {}, _deep, "a.png has more than 8 bits a channel; convert it"),
        ({"b.png": (4, 3), "a.png": (3, 4)}, {}, None, "a.png is 3x4 and b.png 4x3; make them"),
        ({"b.png": (4, 3), "a.png": (3, 3)}, {"resize": 3}, None, "a.png is 3x3 and b.png 4x3"),
        ({"a.png": (9, 5)}, {"crop": 6}, None, "a.png is 9x5, less than crop: 6; give a resize"),
        ({"a.png": (9, 5)}, {"std": [1.0, 0.0, 1.0]}, None, "std divides and cannot be 0"),
    ],
)
def test_a_folder_that_is_not_usable_is_refused(images, files, keys, damage, said):
    source = images(files, **keys)
    if damage:
        damage(source.folder / list(files)[-1])
    if said is None:
        assert opened(source).samples == 1
    else:
        assert said in message(source)


# Callables


@pytest.mark.parametrize(
    "body",
    [
        "return [{'image': np.ones((2, 3))}] * 2",
        "return [np.ones((2, 3))] * 2",
        "return [(np.ones((2, 3)),)] * 2",
        "return [[np.ones((2, 3)), [0, 1]]] * 2",
        "yield {'image': np.ones((2, 3))}, np.arange(2)\nyield {'image': np.ones((2, 3))}, [0, 1]",
        "import torch\nreturn [torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)] * 2",
        """
import torch
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
return DataLoader(data, batch_size=3)
""",
    ],
)
def test_a_callable_may_give(called, body):
    batches = opened(called(body), names=["image"])
    inputs = joined(batches)
    assert list(inputs) == ["image"] and inputs["image"].dtype == np.float32
    np.testing.assert_array_equal(inputs["image"], np.ones((4, 3)))
    assert batches.samples == 4
    assert batches.labels() is None or batches.labels().tolist() == [0, 1, 0, 1]


def test_a_callable_gets_its_arguments(called):
    source = called("return [{'image': np.ones((count, 1))}]", count=5)
    assert opened(source).samples == 5


def test_a_buffer_that_the_callable_fills_again_is_copied(called):
    body = """
x = np.zeros((1, 1), np.float32)
for number in range(4):
    x[:] = number
    yield x
"""
    batches = opened(called(body), batch_size=3, names=["image"])
    assert joined(batches)["image"].ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return []", "it gives no samples"),
        ("return 3", "it returned int, not a list of batches"),
        ("return np.ones((2, 3))", "it returned ndarray, not a list of batches"),
        ("return {'image': np.ones((2, 3))}", "it returned dict, not a list of batches"),
        (
            "import torch\nreturn torch.utils.data.TensorDataset(torch.ones(3, 2))",
            "it returned TensorDataset, not a list of batches",
        ),
        ("yield 1, 2, 3", "batch 1 has 3 parts; write {argument: array} or (inputs, labels)"),
        ("yield {}", "batch 1 has no inputs"),
        ("yield 3.5", "batch 1: 'image' is float and has no axis of samples"),
        ("yield [[1, 2], [3]], None", "'image' is no array: its rows have different lengths"),
        ("yield {'image': ['a', 'b']}", "batch 1: 'image' has type <U1, not numbers"),
        ("yield np.ones((3, 2)), [1, 2]", "batch 1 does not have as many samples in each array: 3"),
        ("yield np.ones((2, 2)), [0.5, 1]", "batch 1: its labels is float64 [2]; labels are one"),
        (
            "yield np.ones((2, 2))\nyield np.array([[0, 1], [2, np.nan]])",
            "batch 2: 'image' holds NaN, first in sample 3; remove it",
        ),
        (
            "yield np.ones((2, 2))\nyield np.ones((2, 3))",
            "batch 2 has image [3] and no labels per sample, but batch 1 has image [2] and no",
        ),
        (
            "yield np.ones((2, 2))\nyield np.ones((2, 2)), [1, 2]",
            "batch 2 has image [2] and labels per sample, but batch 1 has image [2] and no",
        ),
        ("yield np.ones((2, 2))\nraise KeyError(3)", "raised KeyError: 3 (feed.py:4)"),
    ],
)
def test_what_a_callable_must_not_give_is_refused(called, body, said):
    assert said in message(called(body), names=["image"])


def test_an_unnamed_input_needs_to_know_the_models_arguments(called):
    said = message(called("yield np.ones((2, 2))"))
    assert said.endswith("batch 1 does not name its input; write {argument: array}")


@pytest.mark.parametrize(
    "body",
    [
        "yield np.random.rand(4, 2), np.arange(4)",
        "batches.x = getattr(batches, 'x', iter([(np.ones((2, 2)), [1, 2])]))\nreturn batches.x",
    ],
)
def test_samples_that_differ_from_pass_to_pass_are_refused(called, body):
    batches = opened(called(body), names=["image"])
    assert len(batches.labels())
    with pytest.raises(DataError, match="gives other samples at each call; do not shuffle"):
        list(batches)


def test_a_callable_that_is_not_there_is_refused_on_opening(tmp_path):
    source = CallableSource(callable=Target(path=tmp_path / "gone.py", name="x"))
    with pytest.raises(DataError, match="no such file"):
        opened(source)


# Keys


def test_the_key_of_an_npz_changes_with_content_and_choice_only(npz):
    keys = [
        opened(npz()).key(),
        opened(npz(x=X)).key(),
        opened(npz(inputs={"other": "x"})).key(),
        opened(npz(labels=None)).key(),
        opened(npz(5)).key(),
        opened(npz(5), seed=1).key(),
    ]
    assert len(set(keys)) == len(keys)
    source = npz()
    os.utime(source.npz, (1, 1))
    assert opened(source, seed=3).key() == opened(npz(10), batch_size=9).key() == keys[0]


def test_the_key_of_a_folder_changes_with_content_and_settings_only(images):
    files = {
        f"{c}/{i}.png": np.full((4, 4, 3), 9 * c + i, np.uint8) for c in (0, 1) for i in (0, 1)
    }

    def key(seed=0, batch_size=4, **keys):
        return opened(images(files, **keys), batch_size, seed).key()

    first = key()
    keys = [first, key(resize=2), key(crop=2), key(grayscale=True), key(mean=[1.0, 0.0, 0.0])]
    keys += [key(samples=2), key(samples=2, seed=2)]
    assert len(set(keys)) == len(keys)
    assert key(seed=2, batch_size=1, samples=4) == first
    images({"0/0.png": np.full((4, 4, 3), 99, np.uint8)})
    assert opened(images({})).key() != first


def test_a_large_folder_is_known_by_names_sizes_and_times(images, monkeypatch):
    monkeypatch.setattr("granplugin.data.images._SMALL_BYTES", 0)
    source = images({"a.png": (3, 3)})
    before = opened(source).key()
    assert opened(source).key() == before
    os.utime(source.folder / "a.png", (1, 1))
    assert opened(source).key() != before


def test_the_key_of_a_callable_changes_with_its_samples_and_labels_only(called, tmp_path):
    body = "return [{'image': np.ones((4, 1))}]"
    keys = [
        opened(called(body)).key(),
        opened(called(body, samples=2)).key(),
        opened(called(body.replace("ones", "zeros"))).key(),
        opened(called(body.replace("(4, 1)", "(4, 1, 1)"))).key(),
        opened(called("return [({'image': np.ones((4, 1))}, [0, 1, 2, 3])]")).key(),
        opened(called("return [({'image': np.ones((4, 1))}, [0, 1, 2, 2])]")).key(),
    ]
    assert len(set(keys)) == len(keys)
    assert opened(called(body), batch_size=1, seed=4).key() == keys[0]
    assert opened(called("return 2 * [{'image': np.ones((2, 1))}]")).key() == keys[0]

    # What the callable reads is no part of its code.
    reads = f"return [{{'image': np.load({str(tmp_path / 'x.npy')!r})}}]"
    np.save(tmp_path / "x.npy", np.ones((4, 1)))
    assert opened(called(reads)).key() == keys[0]
    np.save(tmp_path / "x.npy", np.zeros((4, 1)))
    assert opened(called(reads)).key() == keys[2]

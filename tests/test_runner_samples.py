"""What the runners make of images and of sound: the samples that the model was trained on."""

from __future__ import annotations

import json
import sys
import wave
import zlib

import numpy as np
import pytest
import small_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_runner import LABELS, run

from edgelean.exporter import BundleFacts, write_bundle
from edgelean.recipe import AudioInput, ImageInput, load_recipe
from edgelean.shelf import shelf


@pytest.fixture(scope="module")
def samples():
    sys.path.insert(0, str(shelf("export") / "runners"))
    import samples

    sys.path.pop(0)
    return samples


def told(preparation):
    return json.loads(json.dumps(preparation.to_json()))


def grey(size=8, **more):
    return told(ImageInput(size=(size, size), channels=1, **more))


MODES = {"L": 1, "RGB": 3, "RGBA": 4, "LA": 2, "P": 3}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mode=st.sampled_from(sorted(MODES)), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_png_is_read_as_pillow_reads_it_without_pillow(mode, height, width, seed, samples, tmp_path):
    random = np.random.default_rng(seed)
    smooth = np.cumsum(random.integers(0, 9, size=(height, width, 3)), 1).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    image.save(tmp_path / "x.png")
    found = samples.read_image(str(tmp_path / "x.png"))
    wanted = np.asarray(image.convert("RGB") if mode == "P" else image).reshape(height, width, -1)
    assert np.array_equal(found, wanted)


def png(lines, width, kind=2, bits=8):
    """A PNG file of lines ``[height, 1 + bytes]``, each with its filter in front."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + len(lines).to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([bits, kind, 0, 0, 0]))
    packed = zlib.compress(np.asarray(lines, np.uint8).tobytes())
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=7), bits=st.sampled_from([8, 16]), seed=st.integers(0, 99)
)
def test_every_filter_of_a_png_is_undone_as_pillow_undoes_it(filters, bits, seed, samples, tmp_path):
    width = 5
    rest = np.random.default_rng(seed).integers(0, 256, size=(len(filters), width * 3 * bits // 8))
    (tmp_path / "x.png").write_bytes(png(np.c_[filters, rest], width, bits=bits))
    found = samples.read_image(str(tmp_path / "x.png"))
    with Image.open(tmp_path / "x.png") as image:  # of 16 bits for a colour Pillow keeps the high 8
        assert np.array_equal(found, np.asarray(image))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image at all",
        png(np.zeros((2, 7), np.uint8), 2)[:40],
        png(np.full((2, 7), 9, np.uint8), 2),
        png(np.zeros((1, 7), np.uint8), 2).replace(b"IDAT", b"NONE"),
        png(np.zeros((2, 7), np.uint8), 1 << 28),
    ],
)
def test_a_damaged_image_is_refused_with_its_name(content, samples, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(samples.RefusedError, match=r"x\.png: cannot be read as an image"):
        samples.read_image(str(tmp_path / "x.png"))


def test_what_needs_pillow_says_so(samples, tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    assert samples.read_image(str(tmp_path / "x.jpg")).shape == (4, 4, 3)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(samples.RefusedError, match="pip install pillow"):
        samples.read_image(str(tmp_path / "x.jpg"))


@pytest.mark.parametrize("size", [5, 8, 16, 30])
def test_a_size_is_changed_as_pillow_changes_it(size, samples, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = samples.prepared(str(tmp_path / "x.png"), grey(size), [1, size, size])
    wanted = (
        np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)) / 255
    )
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_mean_deviation_and_order_are_those_of_the_recipe(layout, samples, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    preparation = told(ImageInput(size=(4, 4), channels=3, mean=mean, std=std, layout=layout))
    wanted = (pixels / 255 - mean) / std
    wanted = wanted if layout == "channels last" else wanted.transpose(2, 0, 1)
    found = samples.prepared(str(tmp_path / "x.png"), preparation, [16, 3] if "last" in layout else [3, 4, 4])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), wanted.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", ["digits", "digits-sequence"])
def test_a_digit_as_an_image_is_the_sample_that_the_recipe_gives(recipe, samples, tmp_path):
    found = load_recipe(recipe)
    sample = found.data().test[3][0].numpy()
    Image.fromarray(np.round(255 * sample.reshape(8, 8)).astype(np.uint8)).save(tmp_path / "x.png")
    made = samples.prepared(str(tmp_path / "x.png"), told(found.preparation), sample.shape)
    np.testing.assert_allclose(made, sample, atol=0.5 / 255)


def save_wav(path, x, rate=8000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(x.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(x * 32767).astype("<i2").tobytes())


@pytest.mark.parametrize("length", [0, 1, 3000, 8000, 9500])
def test_a_recording_is_the_sample_that_the_recipe_gives(length, samples, tmp_path):
    import torch

    from edgelean.recipes.spoken_digits import _even, framed, placed

    x = np.random.default_rng(0).uniform(-0.5, 0.5, size=(length, 1))
    save_wav(tmp_path / "x.wav", x)
    preparation = told(load_recipe("spoken-digits").preparation)
    found = samples.prepared(str(tmp_path / "x.wav"), preparation, [61, 304])
    pcm = np.round(x[:, 0] * 32767).astype(np.int16)
    wanted = framed(placed(_even(pcm) if length else torch.zeros(0), 0.5)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_channels_are_mixed_and_a_plain_recording_is_one_row(samples, tmp_path):
    x = np.random.default_rng(0).uniform(-0.5, 0.5, size=(20, 2))
    save_wav(tmp_path / "x.wav", x, rate=16000)
    found = samples.prepared(str(tmp_path / "x.wav"), told(AudioInput(rate_hz=16000, samples=20)), [1, 20])
    np.testing.assert_allclose(found[0], x.mean(1), atol=1e-4)


@pytest.fixture
def bundle(tmp_path):
    """A perceptron that reads an image of 2 x 3 grey pixels."""
    model = small_onnx.save_perceptron(tmp_path / "model.onnx")
    checks = [{"file": "model.onnx", "passed": True, "reason": "Right."}]
    preparation = told(ImageInput(size=(2, 3), channels=1))
    facts = BundleFacts(title="compass", batch=2, checks=checks, labels=LABELS, preparation=preparation)
    return write_bundle(tmp_path / "bundle", [model], facts)


def test_images_in_labels_out(bundle, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 2, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    assert run(bundle, *(tmp_path / f"{index}.png" for index in range(3))) == 0
    answers = small_onnx.expected(small_onnx.weights(), pixels.reshape(3, 6) / 255).argmax(1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[f"{index}:", LABELS[row]] for index, row in enumerate(answers)]
    assert "any number of images" in (bundle / "README.md").read_text()


def test_what_does_not_fit_the_model_is_refused(bundle, tmp_path, capsys):
    save_wav(tmp_path / "x.wav", np.zeros((9, 1)))
    assert run(bundle, tmp_path / "x.wav") == 2
    assert "x.wav: the model takes an image, or a .npy file" in capsys.readouterr().err
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"preparation": None}))
    assert run(bundle, tmp_path / "x.png") == 2
    assert "does not say how an image file becomes a sample" in capsys.readouterr().err
    other = told(AudioInput(rate_hz=16000, samples=6))
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"preparation": other}))
    assert run(bundle, tmp_path / "x.wav") == 2
    assert "x.wav: has 8000 samples a second, the model takes 16000" in capsys.readouterr().err

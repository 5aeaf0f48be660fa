"""The built-in recipes that read a file: splits, lengths, and what they say when the file is not there."""

from __future__ import annotations

import copy
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgelean.errors import InputError, MissingError
from edgelean.profile import load_profile
from edgelean.recipe import BUILT_IN, load_recipe
from edgelean.recipes import scifar, smnist, spoken_digits
from edgelean.recipes._files import arrays
from edgelean.recipes.spoken_digits import FRAME, HOP, SAMPLES, framed, placed

FILES = {"spoken-digits": "fsdd.npz", "smnist": "mnist.npz", "scifar": "cifar10_jpeg.npz"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELEAN_DATA", str(tmp_path))
    return tmp_path


# -- the files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), FILES.items())
def test_without_its_file_a_recipe_names_the_file_and_the_variable(folder, name, file):
    with pytest.raises(MissingError, match=rf"{re.escape(file)} is not in {re.escape(str(folder))}: set EDGELEAN_DATA"):
        load_recipe(name).data()


@pytest.mark.parametrize("set_to", [None, ""])
def test_without_the_variable_a_recipe_asks_for_it(monkeypatch, set_to):
    monkeypatch.delenv("EDGELEAN_DATA", raising=False)
    if set_to is not None:
        monkeypatch.setenv("EDGELEAN_DATA", set_to)
    with pytest.raises(MissingError, match=r"mnist\.npz: set EDGELEAN_DATA to the folder that holds it"):
        load_recipe("smnist").data()


def test_a_file_that_is_something_else_is_refused(folder):
    (folder / "mnist.npz").write_bytes(b"PK\x03\x04 broken off")
    with pytest.raises(InputError, match=r"mnist\.npz is not an archive of NumPy arrays"):
        arrays("mnist.npz", "x_train")


def test_an_archive_of_something_else_is_refused_with_what_it_has(folder):
    np.savez(folder / "mnist.npz", pixels=np.zeros(3))
    with pytest.raises(InputError, match="has no array 'x_train': it has pixels"):
        arrays("mnist.npz", "x_train")


def test_the_command_ends_with_one_message_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "edgelean", "fit", "spoken-digits", "--profile", "raspberry-pi-5", "--out", "run"]
    known = {name: value for name, value in os.environ.items() if name != "EDGELEAN_DATA"}
    done = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this recipe reads fsdd.npz: set EDGELEAN_DATA")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["fit", "axes"])
def test_the_help_of_a_command_lists_every_built_in_recipe(command):
    done = subprocess.run([sys.executable, "-m", "edgelean", command, "--help"], capture_output=True, text=True)
    shown = re.sub(r"[\s│]+", " ", done.stdout)
    assert ", ".join(BUILT_IN) in shown


# -- spoken digits -----------------------------------------------------------------------------------------------------

FIRST = 1000


@pytest.fixture
def speech(folder):
    """Two speakers who say two digits twelve times; each recording is told by its length."""
    index = np.tile(np.arange(12), 4)
    lengths = FIRST + np.arange(48)
    loud = np.random.default_rng(0).choice([-1, 1], lengths.sum()) * np.repeat(10 ** (1 + np.arange(48) % 4), lengths)
    offset = np.concatenate([[0], lengths.cumsum()])
    y = np.repeat([3, 7, 3, 7], 12).astype(np.uint8)
    np.savez(folder / "fsdd.npz", audio=loud.astype(np.int16), offset=offset, y=y, index=index.astype(np.uint8))
    return load_recipe("spoken-digits").data(), index, y


def heard(frames):
    """Return the samples that frames were made of."""
    return torch.cat([frames[:, :HOP].flatten(), frames[-1, HOP:]])


def which(frames):
    """Return which recording one second holds."""
    return int((heard(frames) != 0).sum()) - FIRST


def test_recordings_0_to_4_are_the_test_split_and_the_validation_split_is_none_of_them(speech):
    data, index, y = speech
    found = [[which(x) for x, _ in split] for split in (data.validation, data.test)]
    assert [set(index[split]) for split in found] == [set(range(5, 10)), set(range(5))]
    assert all(sorted(split) == [i for i in range(48) if index[i] in index[split]] for split in found)
    trained = [len(sound) - FIRST for sound in data.train.recordings]
    assert sorted([*trained, *found[0], *found[1]]) == list(range(48))
    for split in (data.validation, data.test):
        assert all(int(digit) == y[which(x)] for x, digit in split)
    assert [int(digit) for _, digit in data.train] == list(y[trained])


def test_every_recording_is_one_second_in_frames_and_equally_loud(speech):
    data, _, _ = speech
    for frames, _ in data.test:
        assert frames.shape == (61, FRAME)
        sound = heard(frames)
        assert sound[sound != 0].square().mean() == pytest.approx(1.0, rel=1e-4)


def test_frames_overlap_and_come_one_hop_after_the_other():
    frames = framed(torch.arange(float(SAMPLES)))
    assert frames.shape == (61, FRAME)
    assert torch.equal(frames[:, 0], HOP * torch.arange(61.0))
    assert torch.equal(frames[7], frames[7, 0] + torch.arange(float(FRAME)))


def test_a_short_recording_stands_where_it_is_put_and_of_a_long_one_the_first_second_is_kept():
    sound = torch.arange(1.0, 101.0)
    starts = [int(placed(sound, place).nonzero()[0]) for place in (0.0, 0.5, 1.0)]
    assert starts == [0, (SAMPLES - 100 + 1) // 2, SAMPLES - 100]
    assert torch.equal(placed(sound, 1.0)[-100:], sound)
    long = torch.arange(float(SAMPLES + 5))
    assert torch.equal(placed(long, 0.7), long[:SAMPLES])


def test_training_hears_a_recording_differently_each_time_and_repeats_itself_from_a_seed(speech):
    train = speech[0].train

    def three_times(seed):
        torch.manual_seed(seed)
        return [train[5][0] for _ in range(3)]

    first, again = three_times(1), three_times(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_recording_that_is_slower_and_longer_than_a_second_still_fits():
    torch.manual_seed(0)
    train = spoken_digits.Spoken((torch.randn(SAMPLES - 10),), torch.tensor([4]))
    assert {tuple(train[0][0].shape) for _ in range(8)} == {(61, FRAME)}


@pytest.fixture(scope="module")
def speech_net():
    torch.manual_seed(0)
    net = spoken_digits.speech_net(width=8, states=6)
    for _ in range(3):
        net(torch.randn(4, 61, FRAME))  # batch statistics
    return net.eval()


def test_a_stream_of_frames_gives_what_the_whole_second_gives(speech_net):
    frames, state = torch.randn(2, 61, FRAME), None
    with torch.no_grad():
        for frame in frames.unbind(1):
            answer, state = speech_net.step(frame, state)
        assert torch.allclose(answer, speech_net(frames), atol=1e-5)


def test_the_layer_that_hears_the_order_of_sounds_has_no_way_around_it(speech_net):
    silent = copy.deepcopy(speech_net.blocks[1])
    nn.init.zeros_(silent.value.weight)
    nn.init.zeros_(silent.value.bias)
    assert not silent(torch.randn(2, 5, 8)).any()
    assert not silent.step(torch.randn(2, 8))[0].any()


def test_the_profile_for_speech_asks_for_a_quarter_of_the_full_size_on_the_board_of_the_digits():
    digits, speech = load_profile("raspberry-pi-5"), load_profile("raspberry-pi-5-speech")
    assert (speech.board, speech.precision, speech.batch) == (digits.board, digits.precision, digits.batch)
    assert (speech.budgets.latency.share, speech.budgets.energy.share) == (0.25, 0.25)


# -- images read pixel by pixel ----------------------------------------------------------------------------------------


def test_mnist_is_read_row_by_row_and_the_end_of_the_training_split_is_validation(folder, monkeypatch):
    monkeypatch.setattr(smnist, "VALIDATION", 3)
    random = np.random.default_rng(0)
    x_train, x_test = (random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (8, 4))
    y_train, y_test = np.arange(8, dtype=np.uint8), np.arange(4, dtype=np.uint8)
    np.savez(folder / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    data = load_recipe("smnist").data()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [5, 3, 4]
    for split, x, y in [
        (data.train, x_train[:5], y_train[:5]),
        (data.validation, x_train[5:], y_train[5:]),
        (data.test, x_test, y_test),
    ]:
        pixels, digits = split.tensors
        assert pixels.shape[1:] == (784, 1)
        assert pixels[1, 28 * 9 + 4, 0] == pytest.approx(x[1, 9, 4] / 255)
        assert digits.tolist() == y.tolist()


def jpeg(color):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def test_cifar_is_decoded_and_the_end_of_the_training_split_is_validation(folder, monkeypatch):
    monkeypatch.setattr(scifar, "VALIDATION", 1)
    colors = [(200, 30, 60), (10, 220, 90), (50, 60, 70)]
    packed = {}
    for split, chosen in (("train", colors), ("test", colors[:1])):
        files = [jpeg(color) for color in chosen]
        packed[f"jpeg_{split}"] = np.concatenate(files)
        packed[f"offset_{split}"] = np.cumsum([0, *map(len, files)])
        packed[f"y_{split}"] = np.arange(len(files), dtype=np.uint8)
    np.savez(folder / "cifar10_jpeg.npz", **packed)
    data = load_recipe("scifar").data()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [2, 1, 1]
    sequence, label = data.validation[0]
    assert sequence.shape == (1024, 3)
    assert int(label) == 2
    color = (sequence * torch.tensor(scifar.DEVIATION) + torch.tensor(scifar.MEAN)).mean(0) * 255
    assert torch.allclose(color, torch.tensor(colors[2], dtype=torch.float32), atol=4)


@pytest.mark.parametrize(("name", "shape"), [("smnist", (2, 784, 1)), ("scifar", (2, 1024, 3))])
def test_the_nets_answer_for_a_sequence(name, shape):
    recipe = load_recipe(name)
    with torch.no_grad():
        assert recipe.model()(torch.randn(shape)).shape == (2, len(recipe.labels))


def test_smnist_is_the_network_of_the_paper():
    layer = load_recipe("smnist").model().blocks[0].layer
    assert (layer.width, layer.states) == (8, 256)

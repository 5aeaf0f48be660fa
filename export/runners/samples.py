"""From files to the arrays that a model takes: .npy, images and sound. Needs numpy, Python 3.8 or newer.

A .npy file holds samples as the model takes them. An image or a recording is one sample, prepared as manifest.json
says under ``preparation``, which comes from the recipe that the model was trained with.
"""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np

CHUNK = 4096
"""Time steps of a signal that are in memory at once."""

FULL_SCALE = 2.0**31
"""The largest sample of a .wav file, filled up to four bytes."""

LARGEST_IMAGE = 1 << 28
"""Bytes that an image may have when it is unpacked; a file of some kilobytes can claim to hold more than any memory."""

PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers of a pixel by the colour type of a PNG file: grey, RGB, palette, grey and alpha, RGB and alpha."""


class RefusedError(Exception):
    """What was asked cannot be done; the message says why, ``exit_code`` tells bad input (2) from bad files (4)."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def load(path: str) -> Any:
    """Return the array of a .npy file, which stays on the disk."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RefusedError("{}: cannot be read as a .npy file: {}".format(path, error)) from None


def prepared(path: str, preparation: Dict[str, Any], shape: Sequence[int]) -> Any:
    """Return the sample ``shape`` that an image or a .wav file is, in FP32."""
    kind = "audio" if path.lower().endswith(".wav") else "image"
    if not preparation:
        raise RefusedError(
            "{}: this bundle does not say how an {} file becomes a sample, since the recipe of the model has no "
            "preparation: give the samples as a .npy file".format(path, kind)
        )
    if preparation["kind"] != kind:
        wanted = "a .wav file" if preparation["kind"] == "audio" else "an image"
        raise RefusedError("{}: the model takes {}, or a .npy file".format(path, wanted))
    sample = sound(path, preparation) if kind == "audio" else picture(path, preparation)
    if sample.size != int(np.prod(shape)):
        raise RefusedError("{}: gives {} numbers, the model takes {}".format(path, sample.size, list(shape)))
    return sample.reshape(tuple(shape)).astype(np.float32)


def picture(path: str, preparation: Dict[str, Any]) -> Any:
    """Return an image with its size, channels, mean and deviation as the model was trained on them."""
    height, width = preparation["size"]
    pixels = coloured(read_image(path), preparation["channels"]).astype(np.float64) / 255
    pixels = np.einsum("yh,hwc->ywc", resampling(len(pixels), height), pixels)
    pixels = np.einsum("xw,hwc->hxc", resampling(pixels.shape[1], width), pixels)
    pixels = (pixels - np.asarray(preparation["mean"])) / np.asarray(preparation["std"])
    return pixels if preparation["layout"] == "channels last" else np.moveaxis(pixels, 2, 0)


def resampling(found: int, wanted: int) -> Any:
    """Return the matrix ``[wanted, found]`` that changes the length of a line: linear, and a mean where it shrinks."""
    scale = found / wanted
    reach = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(found)[None] + 0.5 - centres[:, None])
    weights = np.maximum(1 - distance / reach, 0)
    return weights / weights.sum(1, keepdims=True)


def coloured(pixels: Any, channels: int) -> Any:
    """Return pixels ``[height, width, 1 or 3]``: grey as ITU-R BT.601 weighs the colours; alpha is left out."""
    pixels = pixels[:, :, : 1 if pixels.shape[2] < 3 else 3]
    if channels == 3:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return pixels if pixels.shape[2] == 1 else pixels @ np.array([[0.299], [0.587], [0.114]])


def read_image(path: str) -> Any:
    """Return the pixels ``[height, width, channels]`` of an image, from 0 to 255; PNG needs nothing but Python."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(len(PNG))
            if content == PNG:
                pixels = from_png(file.read())
                if pixels is not None:
                    return pixels
    except (OSError, ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        raise RefusedError("{}: cannot be read as an image: {}".format(path, error)) from None
    try:
        from PIL import Image
    except ImportError:
        raise RefusedError("{}: only plain PNG is read without Pillow: pip install pillow".format(path)) from None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RefusedError("{}: cannot be read as an image: {}".format(path, error)) from None


def from_png(content: bytes) -> Any:
    """Return the pixels of a PNG file after its signature; None where they are interlaced or not of 8 or 16 bits."""
    palette, packed, place = np.zeros((0, 3), np.uint8), [], 0
    header: Tuple[int, ...] = ()
    while place < len(content):
        size, name = struct.unpack_from(">I4s", content, place)
        chunk = content[place + 8 : place + 8 + size]
        if name == b"IHDR":
            header = struct.unpack(">IIBBBBB", chunk)
        elif name == b"PLTE":
            palette = np.frombuffer(chunk, np.uint8).reshape(-1, 3)
        elif name == b"IDAT":
            packed.append(chunk)
        place += size + 12
    width, height, bits, kind, _, _, interlaced = header or (0, 0, 0, 0, 0, 0, 0)
    if interlaced or bits not in (8, 16):
        return None
    wide = CHANNELS[kind] * bits // 8
    expected = height * (1 + width * wide)
    if not 0 < expected <= LARGEST_IMAGE:
        raise ValueError("its size of {} x {} is not one that is read".format(width, height))
    lines = np.frombuffer(zlib.decompressobj().decompress(b"".join(packed), expected), np.uint8)
    pixels = unfiltered(lines.reshape(height, -1), wide)[:, :: bits // 8]  # of 16 bits the high byte
    pixels = pixels.reshape(height, width, -1)
    return palette[pixels[:, :, 0]] if kind == 3 else pixels


def unfiltered(lines: Any, wide: int) -> Any:
    """Return the bytes of a PNG's lines, each of which is told as a difference from its neighbours (RFC 2083, 6)."""
    found = np.zeros((len(lines) + 1, lines.shape[1] - 1), np.uint8)  # with a line above the first
    for row, line in enumerate(lines, 1):
        kind, rest = int(line[0]), line[1:]
        if kind < 2:
            found[row] = np.cumsum(rest.reshape(-1, wide), 0, np.uint8).ravel() if kind else rest
        elif kind == 2:
            found[row] = rest + found[row - 1]
        else:
            found[row] = beside_and_above(rest.tobytes(), found[row - 1].tobytes(), wide, (halfway, nearest)[kind - 3])
    return found[1:]


def beside_and_above(rest: bytes, above: bytes, wide: int, guess: Callable[[int, int, int], int]) -> Any:
    """Return a line whose bytes are told as differences from a guess by the bytes left, above, and above left."""
    now = bytearray(rest)
    for place in range(len(now)):
        left, corner = (now[place - wide], above[place - wide]) if place >= wide else (0, 0)
        now[place] = (now[place] + guess(left, above[place], corner)) & 255
    return np.frombuffer(bytes(now), np.uint8)


def halfway(left: int, above: int, corner: int) -> int:
    """Return the mean of two neighbours."""
    return (left + above) // 2


def nearest(left: int, above: int, corner: int) -> int:
    """Return whichever of three neighbours is nearest to ``left + above - corner``."""
    a, b, c = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    return left if a <= b and a <= c else above if b <= c else corner


def sound(path: str, preparation: Dict[str, Any]) -> Any:
    """Return a recording as the model was trained on it: of one channel, one length and one loudness, in frames."""
    with opened_wav(path) as file:
        rate, channels = file.getframerate(), file.getnchannels()
    if rate != preparation["rate_hz"]:
        raise RefusedError(
            "{}: has {} samples a second, the model takes {}: convert it first, with "
            "ffmpeg -i IN.wav -ar {} OUT.wav for example".format(path, rate, *[preparation["rate_hz"]] * 2)
        )
    parts = list(wav_samples(path, channels))
    samples = np.concatenate(parts).reshape(-1, channels).mean(1) if parts else np.zeros(0)
    wanted = preparation["rms"]
    if wanted:
        loudness = max(float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0, 2.0**-15)
        samples = samples * (wanted / loudness)
    samples = samples[: preparation["samples"]]
    silence = preparation["samples"] - len(samples)
    before = int(0.5 * (silence + 1))
    samples = np.pad(samples, (before, silence - before))
    frame, hop = preparation["frame"], preparation["hop"]
    starts = range(0, len(samples) - frame + 1, hop) if frame else [0]
    return np.stack([samples[start : start + (frame or len(samples))] for start in starts])


def numbers(path: str, shape: Sequence[int], framed: bool) -> Iterator[Any]:
    """Yield the numbers of a file in order; ``framed``: a .npy file may also have its time steps side by side."""
    if path.lower().endswith(".wav"):
        for samples in wav_samples(path, int(np.prod(shape))):
            yield samples
        return
    array = load(path)
    if framed and array.ndim == len(shape) + 2 and len(array) == 1:
        array = array[0]
    plain = array.ndim == 1 and len(shape) == 1
    if not (plain or (framed and array.shape[1:] == tuple(shape))) or array.dtype.kind not in "fiub":
        wanted = ", ".join(["time steps"] + [str(size) for size in shape])
        wanted = "[{}], or a row of them".format(wanted) if framed else "[numbers], where --hop is given"
        raise RefusedError(
            "{}: a signal is an array of numbers of shape {}, found {} of {}".format(
                path, wanted, array.shape, array.dtype
            )
        )
    for start in range(0, len(array), CHUNK):
        yield np.asarray(array[start : start + CHUNK]).reshape(-1)


def opened_wav(path: str) -> Any:
    """Return a .wav file that is open."""
    try:
        return wave.open(path, "rb")
    except (OSError, EOFError, wave.Error) as error:
        raise RefusedError("{}: cannot be read as a .wav file: {}".format(path, error)) from None


def wav_samples(path: str, width: int) -> Iterator[Any]:
    """Yield the samples of a .wav file as numbers from -1 to 1, those of all channels at one time together."""
    with opened_wav(path) as file:
        channels, size = file.getnchannels(), file.getsampwidth()
        if width % channels:
            raise RefusedError(
                "{}: has {} channels, and the model reads {} numbers in a time step".format(path, channels, width)
            )
        while True:
            try:
                content = file.readframes(CHUNK)
            except (OSError, EOFError, wave.Error) as error:
                raise RefusedError("{}: cannot be read as a .wav file: {}".format(path, error)) from None
            if not content:
                return
            yield from_pcm(content, size)


def from_pcm(content: bytes, size: int) -> Any:
    """Return samples of ``size`` bytes, little endian, as numbers from -1 to 1; those of one byte have no sign."""
    single = np.frombuffer(content, np.uint8).reshape(-1, size)
    if size == 1:
        return (single[:, 0] - np.float32(128)) / np.float32(128)
    wide = np.zeros((len(single), 4), np.uint8)
    wide[:, 4 - size :] = single  # the high bytes: the sign is then where it belongs
    return (wide.view("<i4")[:, 0] / FULL_SCALE).astype(np.float32)


def time_steps(paths: Sequence[str], shape: Sequence[int], hop: int, gain: float, complain: List[str]) -> Iterator[Any]:
    """Yield the time steps ``[1, *shape]`` of a signal; it goes on from file to file.

    ``hop``: how many numbers after the beginning of a time step the next one begins; 0 for right after its end.
    ``gain``: what all numbers are multiplied by. ``complain`` gets what was left out.
    """
    width = int(np.prod(shape))
    if hop > width:
        raise RefusedError("--hop {}: a time step has {} numbers, and none are left out between two".format(hop, width))
    framed, hop, rest, heard = not hop, hop or width, np.zeros(0), 0
    for path in paths:
        for chunk in numbers(path, shape, framed):
            rest = np.concatenate([rest, chunk]) if len(rest) else chunk
            whole = max(0, (len(rest) - width) // hop + 1)
            for first in range(0, whole * hop, hop):
                step = rest[first : first + width].reshape([1, *shape])
                yield step if gain == 1 else gain * step
            rest, heard = rest[whole * hop :], width - hop if whole else heard
    if len(rest) > heard:
        complain.append("the last {} numbers fill no time step, and are left out".format(len(rest) - heard))

"""Run a TensorRT engine of this bundle: needs numpy, tensorrt or tensorrt_rtx and an NVIDIA GPU, Python 3.8 or newer.

    python run_tensorrt.py INPUT.npy|IMAGE|FILE.wav [--model model.engine] [--benchmark]
    python run_tensorrt.py --stream FILE.npy|FILE.wav [--model model.step.engine] [--every N] [--hop N] [--gain X]

As run_onnx.py, which see. An engine runs only with the package and the version that built it, and on the kind of GPU
that it was built for; README.md has the command that builds another one from the ONNX file.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

sys.dont_write_bytecode = True  # a bundle stays as it was checked
sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I does not look beside the script
try:
    import numpy as np
    import running
    from samples import RefusedError
except ImportError as error:
    sys.exit("run_tensorrt.py: {}: pip install numpy, and copy the whole bundle".format(error))

TO_GPU, FROM_GPU = 1, 2
TYPES = {"FLOAT": "tensor(float)", "HALF": "tensor(float16)", "INT64": "tensor(int64)", "INT32": "tensor(int32)"}
INSTALL = {
    "tensorrt": "pip install tensorrt=={}; on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack",
    "tensorrt_rtx": "pip install tensorrt-rtx=={}",
}


class Entry:
    """One input or output of an engine, told as onnxruntime tells it."""

    def __init__(self, name: str, shape: Sequence[int], kind: Any) -> None:
        if kind.name not in TYPES:
            raise RefusedError("{} is of the type {}, which this runner cannot feed".format(name, kind.name))
        self.name, self.shape, self.type = name, list(shape), TYPES[kind.name]
        self.dtype = np.dtype({"tensor(int32)": np.int32, **running.KINDS}[self.type])


def built_with(name: str, bundle: running.Bundle) -> Dict[str, Any]:
    """Return what an engine was built with, from the .json file beside it."""
    car = name + ".json"
    if car not in bundle.files:
        raise RefusedError("{}: is not in manifest.json, and nothing else says what built the engine".format(car), 4)
    return dict(json.loads(bundle.content(car).decode("utf-8")))


def load_package(name: str, facts: Dict[str, Any]) -> Any:
    """Return the package that built an engine, in the version that did."""
    package, version = str(facts["package"]), str(facts["version"])
    if package not in INSTALL:
        raise RefusedError("{}: was built by {!r}, which is no package of TensorRT".format(name, package), 4)
    remedy = INSTALL[package].format(version)
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries are not there
        told = "{}: needs {} {}, which cannot be imported ({}): {}"
        raise RefusedError(told.format(name, package, version, error, remedy)) from None
    if str(trt.__version__) != version:
        told = "{}: was built by {} {}, found {}: {}, or build the engine anew, see README.md"
        raise RefusedError(told.format(name, package, version, trt.__version__, remedy))
    return trt


def load_cudart() -> Any:
    """Return the CUDA runtime: by its name, from CUDA's own folder, or from a wheel of it."""
    places = [ctypes.util.find_library("cudart") or "libcudart.so"]
    for folder, pattern in [("/usr/local", "cuda*/lib64/libcudart.so*")] + [
        (folder, "nvidia/*/lib/libcudart.so*") for folder in sys.path
    ]:
        places += sorted(map(str, Path(folder).glob(pattern)), reverse=True)
    for place in places:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(place)
    raise RefusedError("the CUDA runtime libcudart.so is not found: pip install nvidia-cuda-runtime, or install CUDA")


class Gpu:
    """The few functions of the CUDA runtime that are needed; all work goes through one stream."""

    def __init__(self) -> None:
        self.library = load_cudart()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = ctypes.c_void_p(stream.value)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; what it complains about ends the program."""
        code = getattr(self.library, name)(*arguments)
        if code:
            words = self.library.cudaGetErrorString(ctypes.c_int(code)).decode()
            raise RefusedError("CUDA: {}: {}: look at the GPU with nvidia-smi".format(name, words), 5)

    def memory(self, count: int) -> Any:
        """Return the address of so many bytes on the GPU."""
        place = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(max(count, 1)))
        return place

    def copy(self, to: Any, whence: Any, count: int, way: int) -> None:
        """Queue a copy."""
        self.call("cudaMemcpyAsync", to, whence, ctypes.c_size_t(count), ctypes.c_int(way), self.stream)

    def wait(self) -> None:
        """Return when everything that was queued is done."""
        self.call("cudaStreamSynchronize", self.stream)


class Session:
    """An engine with memory on the GPU; called like a session of onnxruntime."""

    def __init__(self, name: str, bundle: running.Bundle) -> None:
        content, facts = bundle.content(name), built_with(name, bundle)
        trt = load_package(name, facts)
        self.gpu = Gpu()
        self.log = trt.Logger(trt.Logger.ERROR)
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(content)
        self.context: Any = None if self.engine is None else self.engine.create_execution_context()
        if self.context is None:
            told = "{}: {} {} does not load it; was it built for another kind of GPU? Build it anew, see README.md"
            raise RefusedError(told.format(name, trt.__name__, trt.__version__), 5)
        self.inputs: List[Entry] = []
        self.outputs: List[Entry] = []
        for index in range(self.engine.num_io_tensors):
            tensor = self.engine.get_tensor_name(index)
            entry = Entry(tensor, self.engine.get_tensor_shape(tensor), self.engine.get_tensor_dtype(tensor))
            reads = self.engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
            (self.inputs if reads else self.outputs).append(entry)
        self.places: Dict[str, Any] = {}
        self.sizes: Dict[str, int] = {}
        self.words = "{} {}".format(trt.__name__, trt.__version__)

    def get_inputs(self) -> List[Entry]:
        """Return the inputs; a free dimension is -1."""
        return self.inputs

    def run(self, names: Optional[Sequence[str]], feeds: Dict[str, Any]) -> List[Any]:
        """Return the outputs for one batch; ``names`` is what onnxruntime takes there, and is not looked at."""
        arrays = {entry.name: np.ascontiguousarray(feeds[entry.name], entry.dtype) for entry in self.inputs}
        for name, array in arrays.items():
            if not self.context.set_input_shape(name, array.shape):
                told = "{}: the engine does not take the shape {}: see `batch` in the .json file beside it"
                raise RefusedError(told.format(name, list(array.shape)))
            self.gpu.copy(self.place(name, array.nbytes), array.ctypes.data_as(ctypes.c_void_p), array.nbytes, TO_GPU)
        found = [np.empty(tuple(self.context.get_tensor_shape(entry.name)), entry.dtype) for entry in self.outputs]
        for entry, array in zip(self.outputs, found):
            self.place(entry.name, array.nbytes)
        for name, place in self.places.items():
            self.context.set_tensor_address(name, place.value)
        if not self.context.execute_async_v3(self.gpu.stream.value):
            raise RefusedError("TensorRT does not run the engine; its log says why", 5)
        for entry, array in zip(self.outputs, found):
            whence = self.places[entry.name]
            self.gpu.copy(array.ctypes.data_as(ctypes.c_void_p), whence, array.nbytes, FROM_GPU)
        self.gpu.wait()
        return found

    def place(self, name: str, count: int) -> Any:
        """Return the memory of a tensor, which grows with the largest batch that was seen."""
        if count > self.sizes.get(name, -1):
            if name in self.places:
                self.gpu.call("cudaFree", self.places[name])
            self.places[name], self.sizes[name] = self.gpu.memory(count), count
        return self.places[name]


def main(words: Optional[List[str]] = None) -> int:
    """Run the command line ``words``; returns the exit code."""
    return running.main(words, Session, ".engine", __file__)


if __name__ == "__main__":
    sys.exit(main())

"""The runtimes that a model can be measured in: TensorRT with an engine that is built here, or onnxruntime."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from common import RefusedError

VENV = "~/.local/share/edgelean"
INSTALL = f"python3 -m venv --system-site-packages {VENV} && {VENV}/bin/pip install numpy onnxruntime"
PROVIDERS = {
    "onnxruntime CPU": ("CPUExecutionProvider",),
    "onnxruntime CUDA": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
TO_DEVICE = 1
KINDS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class Runtime:
    """A model that is ready: ``fresh`` returns a call of a new session, which runs one batch and waits for it.

    Inputs and outputs stay in the memory of the device, so copies to and from a GPU are not part of a call.
    """

    def __init__(
        self, fresh: Callable[[], Callable[[], Any]], words: Dict[str, str], on_gpu: bool, bus_id: Optional[str]
    ) -> None:
        self.fresh, self.words, self.on_gpu, self.bus_id = fresh, words, on_gpu, bus_id


def open_onnxruntime(kind: str, model: Path, feeds: Dict[str, Any]) -> Runtime:
    """Return the model in onnxruntime: on one thread of the processor, or on the GPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RefusedError("missing", f"onnxruntime cannot be imported: {error}", INSTALL) from None
    onnxruntime.disable_telemetry_events()  # the board is somebody's, nothing is reported from it
    name, on_gpu = f"onnxruntime {onnxruntime.__version__}", kind != "onnxruntime CPU"

    def fresh() -> Callable[[], Any]:
        try:
            return bound(onnxruntime, kind, model, feeds)
        except RefusedError:
            raise
        except Exception as error:  # onnxruntime raises kinds of its own that share no base
            remedy = "is it too old for this opset? pip install --upgrade onnxruntime"
            raise RefusedError("runtime", f"{name} does not run the model: {first_line(error)}", remedy) from None

    words = {"runtime": f"{name}, {PROVIDERS[kind][0]}", "threads": "1"}
    return Runtime(fresh, words, on_gpu, first_gpu() if on_gpu else None)


def bound(ort: Any, kind: str, model: Path, feeds: Dict[str, Any]) -> Callable[[], Any]:
    """Return a call of a new session, tried once, whose inputs and outputs are bound to memory of the device."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong comes as an exception
    wanted = PROVIDERS[kind]
    # TF32 rounds FP32 to 10 bits, which is not what was verified.
    settings = [{"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {} for provider in wanted]
    offered = ort.get_available_providers()
    if wanted[0] in offered:
        session = ort.InferenceSession(str(model), options, providers=list(wanted), provider_options=settings)
        offered = session.get_providers()
    if wanted[0] not in offered:
        found = f"onnxruntime {ort.__version__} cannot start its {wanted[0]}, it offers {', '.join(offered)}"
        raise RefusedError("missing", found, "install the onnxruntime that JetPack's package index has")
    device = "cpu" if kind == "onnxruntime CPU" else "cuda"
    binding = session.io_binding()
    for entry in session.get_inputs():
        array = feed(feeds, entry.name).astype(KINDS.get(entry.type, feeds[entry.name].dtype))
        binding.bind_ortvalue_input(entry.name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    for entry in session.get_outputs():
        binding.bind_output(entry.name, device, 0)

    def call() -> None:
        session.run_with_iobinding(binding)
        if device == "cuda":
            binding.synchronize_outputs()

    call()
    return call


def feed(feeds: Dict[str, Any], name: str) -> Any:
    """Return the input of a name."""
    if name not in feeds:
        raise RefusedError("request", f"the inputs lack {name}", "send the feeds that belong to the model")
    return feeds[name]


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).strip().split("\n") or [type(error).__name__])[0]


def first_gpu() -> Optional[str]:
    """Return the PCI bus id of the GPU that CUDA uses; None where CUDA's library is not where it is looked for."""
    try:
        return Cuda().bus_id()
    except RefusedError:
        return None


class Cuda:
    """The few functions of the CUDA runtime that are needed, through ctypes; everything goes through one stream."""

    def __init__(self) -> None:
        self._library = _load_cudart()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = int(stream.value or 0)
        self._places: List[int] = []

    def bus_id(self) -> str:
        """Return the PCI bus id of the GPU that is used, the first one that CUDA sees."""
        buffer = ctypes.create_string_buffer(32)
        self._call("cudaDeviceGetPCIBusId", buffer, ctypes.c_int(len(buffer)), ctypes.c_int(0))
        return buffer.value.decode()

    def place(self, count: int, content: Optional[bytes] = None) -> int:
        """Return the address of so many new bytes on the GPU, filled with a content."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(count, 1)))
        self._places.append(int(address.value or 0))
        if content:
            whence = (ctypes.c_char_p(content), ctypes.c_size_t(count), ctypes.c_int(TO_DEVICE))
            self._call("cudaMemcpyAsync", address, *whence, ctypes.c_void_p(self.stream))
            self.wait()  # until then the content has to stay
        return self._places[-1]

    def clear(self) -> None:
        """Give all memory back."""
        while self._places:
            self._call("cudaFree", ctypes.c_void_p(self._places.pop()))

    def wait(self) -> None:
        """Return when everything that was queued is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            words = self._library.cudaGetErrorString(ctypes.c_int(code)).decode()
            raise RefusedError("runtime", f"CUDA: {name}: {words}", "look at the GPU and its memory with nvidia-smi")


def _load_cudart() -> Any:
    """Load the CUDA runtime: by its name, from CUDA's own folder, or from a wheel of it."""
    files = sorted(Path("/usr/local").glob("cuda*/lib64/libcudart.so*"), reverse=True)
    for folder in sys.path:
        files += sorted(Path(folder).glob("nvidia/*/lib/libcudart.so*"), reverse=True)
    for name in [ctypes.util.find_library("cudart") or "libcudart.so", *map(str, files)]:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    remedy = "on a Jetson: sudo apt install nvidia-jetpack"
    raise RefusedError("missing", "the CUDA runtime libcudart.so is not found", remedy)


def open_tensorrt(
    model: Path, feeds: Dict[str, Any], folder: Path, device: str, say: Callable[[str], None], cuda: Cuda
) -> Runtime:
    """Return the model as a TensorRT engine, from the cache ``folder`` or built now."""
    trt, log = load_tensorrt()
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    engine_file = folder / f"{engine_key(model, str(trt.__version__), device, shapes)}.engine"
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(engine_file.read_bytes()) if engine_file.is_file() else None
    if engine is None:
        say(f"building the engine with TensorRT {trt.__version__}, which can take minutes")
        plan = bytes(build(trt, log, model, shapes))
        keep(engine_file, plan)
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RefusedError("runtime", f"TensorRT does not load its own engine: {log.complaint()}", "restart the board")
    words = {"runtime": f"tensorrt {trt.__version__}", "threads": "1"}
    return Runtime(lambda: bind(trt, engine, cuda, feeds, log), words, True, cuda.bus_id())


def keep(file: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except OSError:
        part.unlink()
        raise


def engine_key(model: Path, version: str, device: str, shapes: Dict[str, Tuple[int, ...]]) -> str:
    """Return the name of an engine: another model, TensorRT, device or batch needs another engine."""
    facts = json.dumps([model.stem, version, device, sorted(shapes.items())])
    return hashlib.sha256(facts.encode()).hexdigest()


def load_tensorrt() -> Tuple[Any, Any]:
    """Return the package and a logger that keeps the errors."""
    try:
        import tensorrt as trt
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries are not there
        remedy = "on a Jetson: sudo apt install nvidia-jetpack; elsewhere: pip install tensorrt"
        raise RefusedError("missing", f"tensorrt cannot be imported: {error}", remedy) from None
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        found = f"TensorRT {trt.__version__} would choose the precision itself"
        raise RefusedError("missing", found, "TensorRT 10 keeps that of the file: JetPack 6 has it")

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def complaint(self) -> str:
            return "; ".join(self.errors[-3:]) or "it gave no reason"

    return trt, Log()


def build(trt: Any, log: Any, model: Path, shapes: Dict[str, Tuple[int, ...]]) -> Any:
    """Return the plan of an engine for exactly these shapes, in the precision that the file states."""
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.read_bytes()):
        errors = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise RefusedError("runtime", f"TensorRT {trt.__version__} does not read the model: {errors}", _UNSUPPORTED)
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # it rounds FP32 to 10 bits, which is not what was verified
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        shape = feed(shapes, name)
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RefusedError("runtime", f"TensorRT {trt.__version__} builds no engine: {log.complaint()}", _UNSUPPORTED)
    return plan


_UNSUPPORTED = "try another precision in the profile, or a board that runs onnxruntime"


def bind(trt: Any, engine: Any, cuda: Cuda, feeds: Dict[str, Any], log: Any) -> Callable[[], None]:
    """Return a call of a new context, tried once, whose inputs and outputs have new memory on the GPU."""
    cuda.clear()
    context = engine.create_execution_context()
    if context is None:
        raise RefusedError("runtime", f"TensorRT has no room to run: {log.complaint()}", "close other programs")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in inputs:
        if engine.is_shape_inference_io(name):
            raise RefusedError("runtime", f"the input {name} decides about shapes", "fix them in the ONNX file")
        array = feed(feeds, name).astype(trt.nptype(engine.get_tensor_dtype(name)))
        context.set_input_shape(name, array.shape)
        context.set_tensor_address(name, cuda.place(array.nbytes, array.tobytes()))
    for name in (name for name in names if name not in inputs):
        size = int(context.get_max_output_size(name))
        if size < 0:
            raise RefusedError("runtime", f"TensorRT does not tell the size of the output {name}", _UNSUPPORTED)
        context.set_tensor_address(name, cuda.place(size))

    def call() -> None:
        if not context.execute_async_v3(cuda.stream):
            raise RefusedError("runtime", f"TensorRT does not run the engine: {log.complaint()}", "restart the board")
        cuda.wait()

    call()
    return call

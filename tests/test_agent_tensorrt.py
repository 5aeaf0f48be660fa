"""How the agent builds and runs engines: the real builder of TensorRT-RTX, and stand-ins for what needs a GPU."""

import ctypes
import shutil
import subprocess
import sys
from types import SimpleNamespace

import agent_program
import numpy as np
import pytest
import small_onnx


@pytest.fixture(scope="module")
def parts():
    with agent_program.modules() as found:
        yield found


FAKE_CUDART = """
#include <stdlib.h>
#include <string.h>
static int lost, held;
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaStreamCreate(void **stream) { *stream = (void *)77; return 0; }
int cudaDeviceGetPCIBusId(char *text, int n, int device) { strncpy(text, "0000:01:00.0", n); return device; }
int cudaMalloc(void **place, size_t n) { held++; *place = calloc(1, n); return lost ? 2 : 0; }
int cudaFree(void *place) { held--; free(place); return 0; }
int fake_held(void) { return held; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int way, void *stream) {
    if (way != 1 || stream != (void *)77) return 1;
    memcpy(to, from, n);
    return 0;
}
int cudaStreamSynchronize(void *stream) { return stream == (void *)77 ? 0 : 1; }
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "invalid argument"; }
void fake_lose(int yes) { lost = yes; }
"""


@pytest.fixture(scope="module")
def cudart(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a fake libcudart with")
    folder = tmp_path_factory.mktemp("cudart")
    (folder / "cudart.c").write_text(FAKE_CUDART)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", folder / "c.so", folder / "cudart.c"], check=True)
    return ctypes.CDLL(str(folder / "c.so"))


@pytest.fixture
def cuda(parts, cudart, monkeypatch):
    monkeypatch.setattr(parts.runtimes, "_load_cudart", lambda: cudart)
    cudart.fake_lose(0)
    return parts.runtimes.Cuda()


class Engine:
    """A stand-in for an engine and its context: doubles its input, in the memory that it was given."""

    num_io_tensors = 2

    def __init__(self):
        self.places, self.shapes, self.calls = {}, {}, 0

    def create_execution_context(self):
        return self

    def get_tensor_name(self, index):
        return ("x", "y")[index]

    def get_tensor_mode(self, name):
        return name

    def get_tensor_dtype(self, name):
        return np.float32

    def is_shape_inference_io(self, name):
        return False

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, place):
        self.places[name] = place

    def get_max_output_size(self, name):
        return 4 * int(np.prod(self.shapes["x"]))

    def array(self, name):
        count = int(np.prod(self.shapes["x"]))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.places[name]))

    def execute_async_v3(self, stream):
        self.calls += 1
        self.array("y")[:] = 2 * self.array("x")
        return stream == 77


class TensorRt:
    """A stand-in for the package whose plans are the bytes of the model."""

    __version__ = "10.3.0"
    TensorIOMode = SimpleNamespace(INPUT="x")

    def __init__(self):
        self.engine = Engine()
        self.built = 0

    def nptype(self, kind):
        return kind

    def Runtime(self, log):  # noqa: N802  # TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine if plan.startswith(b"plan") else None)


@pytest.fixture
def tensorrt(parts, monkeypatch):
    stand_in = TensorRt()

    def build(trt, log, model, shapes):
        stand_in.built += 1
        return b"plan of " + model.read_bytes()

    monkeypatch.setattr(parts.runtimes, "load_tensorrt", lambda: (stand_in, SimpleNamespace(complaint=lambda: "")))
    monkeypatch.setattr(parts.runtimes, "build", build)
    return stand_in


def open_engine(parts, folder, cuda, device="Orin", batch=3):
    model = folder / f"{'a' * 64}.onnx"
    model.write_bytes(b"model")
    feeds = {"x": np.arange(batch * 5, dtype=np.float64).reshape(batch, 5)}
    return parts.runtimes.open_tensorrt(model, feeds, folder, device, lambda words: None, cuda), feeds


def test_an_engine_computes_from_the_inputs_that_were_sent(parts, tmp_path, cuda, tensorrt):
    runtime, feeds = open_engine(parts, tmp_path, cuda)
    call = runtime.fresh()
    call()
    assert tensorrt.engine.shapes == {"x": (3, 5)}
    assert tensorrt.engine.calls == 2
    np.testing.assert_array_equal(tensorrt.engine.array("y"), 2 * feeds["x"].ravel())
    assert (runtime.words["runtime"], runtime.on_gpu, runtime.bus_id) == ("tensorrt 10.3.0", True, "0000:01:00.0")


def test_the_memory_of_a_session_is_given_back_for_the_next(parts, tmp_path, cuda, cudart, tensorrt):
    runtime, _ = open_engine(parts, tmp_path, cuda)
    before = cudart.fake_held()
    for _ in range(3):
        runtime.fresh()
    assert cudart.fake_held() == before + 2


def test_an_engine_is_built_once_per_model_version_device_and_batch(parts, tmp_path, cuda, tensorrt):
    for _ in range(2):
        open_engine(parts, tmp_path, cuda)
    assert tensorrt.built == 1
    open_engine(parts, tmp_path, cuda, batch=4)
    open_engine(parts, tmp_path, cuda, device="Thor")
    tensorrt.__version__ = "10.16.2"
    open_engine(parts, tmp_path, cuda)
    assert tensorrt.built == 4
    assert len(list(tmp_path.glob("*.engine"))) == 4


def test_an_engine_that_no_longer_loads_is_built_again(parts, tmp_path, cuda, tensorrt):
    open_engine(parts, tmp_path, cuda)
    (file,) = tmp_path.glob("*.engine")
    file.write_bytes(b"of another driver")
    open_engine(parts, tmp_path, cuda)
    assert tensorrt.built == 2
    assert file.read_bytes() == b"plan of model"


def test_a_gpu_without_memory_is_named_with_the_call(parts, tmp_path, cuda, cudart, tensorrt):
    runtime, _ = open_engine(parts, tmp_path, cuda)
    cudart.fake_lose(1)
    with pytest.raises(parts.common.RefusedError, match="cudaMalloc: out of memory"):
        runtime.fresh()


def test_a_plan_is_really_built_from_the_model(parts, tmp_path, monkeypatch):
    """By NVIDIA's own TensorRT-RTX, whose builder has the same interface and needs no GPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", pytest.importorskip("tensorrt_rtx"))
    trt, log = parts.runtimes.load_tensorrt()
    path = small_onnx.save_perceptron(tmp_path / "m.onnx")
    assert len(bytes(parts.runtimes.build(trt, log, path, {"input": (4, 6)}))) > 1000
    with pytest.raises(parts.common.RefusedError, match="the inputs lack input"):
        parts.runtimes.build(trt, log, path, {"image": (4, 6)})
    path.write_bytes(b"nothing that can be parsed")
    with pytest.raises(parts.common.RefusedError, match="does not read the model"):
        parts.runtimes.build(trt, log, path, {"input": (4, 6)})


def test_a_tensorrt_that_would_choose_the_precision_is_refused(parts, monkeypatch):
    old = SimpleNamespace(__version__="8.6.1", NetworkDefinitionCreationFlag=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(parts.common.RefusedError, match=r"TensorRT 8\.6\.1 would choose the precision itself"):
        parts.runtimes.load_tensorrt()

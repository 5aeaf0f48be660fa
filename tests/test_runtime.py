"""Runtimes: what they compute, what they refuse, which one a board gets; TensorRT as far as it goes without a GPU."""

import gc
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import small_onnx
import torch
from torch import nn

from edgelean.errors import DeviceError, InputError
from edgelean.sensors.kernel_files import processor_name
from edgelean.target import runtime as runtime_module
from edgelean.target import tensorrt as tensorrt_module
from edgelean.target.runtime import EagerTorch, OnnxRuntimeCpu, OnnxRuntimeCuda, open_runtime
from edgelean.target.tensorrt import (
    EngineCall,
    RefusedError,
    TensorRt,
    bind,
    configure,
    logger,
    open_tensorrt,
    parse,
    serialize,
)


@pytest.fixture
def perceptron(tmp_path):
    return small_onnx.save_perceptron(tmp_path / "perceptron.onnx")


def test_onnxruntime_computes_the_batch_that_it_was_given(perceptron):
    x = small_onnx.samples(5)
    work = OnnxRuntimeCpu().open(perceptron, {"input": x.copy()})
    gc.collect()  # the session reads the inputs where they lie, so they have to be there still
    for _ in range(3):
        work()
        (found,) = work.binding.copy_outputs_to_cpu()
        np.testing.assert_allclose(found, small_onnx.expected(small_onnx.weights(), x), rtol=1e-4, atol=1e-5)


def test_onnxruntime_takes_arrays_that_are_no_block_of_memory(perceptron):
    x = small_onnx.samples(10)
    work = OnnxRuntimeCpu().open(perceptron, {"input": x[::2]})
    work()
    (found,) = work.binding.copy_outputs_to_cpu()
    np.testing.assert_allclose(found, small_onnx.expected(small_onnx.weights(), x[::2]), rtol=1e-4, atol=1e-5)


def test_every_work_has_a_session_of_its_own(perceptron):
    feeds = {"input": small_onnx.samples(1)}
    first, second = (OnnxRuntimeCpu().open(perceptron, feeds) for _ in range(2))
    assert first.session is not second.session


def test_onnxruntime_computes_on_one_thread_and_says_so(perceptron):
    work = OnnxRuntimeCpu().open(perceptron, {"input": small_onnx.samples(1)})
    options = work.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    conditions = OnnxRuntimeCpu().conditions()
    assert conditions["threads"] == "1"
    assert "CPUExecutionProvider" in conditions["runtime"]
    assert conditions["processor"] == processor_name()


@pytest.mark.parametrize(
    "feeds",
    [
        {"input": np.zeros((2, 5), np.float32)},
        {"input": np.zeros((2, 6), np.int64)},
        {"other": np.zeros((2, 6), np.float32)},
        {},
    ],
)
def test_model_that_does_not_run_on_its_inputs_is_a_device_error_with_its_file(perceptron, feeds):
    with pytest.raises(DeviceError, match=r"perceptron\.onnx"):
        OnnxRuntimeCpu().open(perceptron, feeds)


def test_model_that_does_not_load_is_a_device_error(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    with pytest.raises(DeviceError, match=r"does not load .*broken\.onnx"):
        OnnxRuntimeCpu().open(tmp_path / "broken.onnx", {})
    with pytest.raises(DeviceError, match="does not load a probe"):
        OnnxRuntimeCpu().open(b"no protobuf", {})


@pytest.mark.skipif(runtime_module.has_cuda_provider(), reason="onnxruntime has its CUDA provider here")
def test_provider_that_onnxruntime_silently_leaves_out_is_a_device_error(perceptron):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DeviceError, match="CUDAExecutionProvider"):
            OnnxRuntimeCuda("a GPU").open(perceptron, {"input": small_onnx.samples(1)})


def test_processor_is_named_by_itself(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast One 3000\n")
    assert processor_name(file) == "Fast One 3000"
    file.write_text("processor\t: 0\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B\n")
    assert processor_name(file) == "Raspberry Pi 5 Model B"
    assert processor_name(tmp_path / "none")


# -- torch -------------------------------------------------------------------------------------------------------------


def test_eager_torch_runs_the_model_as_it_is_and_keeps_no_graph():
    seen = []

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, a, b):
            seen.append(torch.is_inference_mode_enabled())
            return self.scale * (a + b)

    runtime = EagerTorch(Sum().eval())
    work = runtime.open(b"", {"a": np.ones(3, np.float32), "b": np.full(3, 2.0, np.float32)})
    assert work().tolist() == [6.0, 6.0, 6.0]
    assert all(seen)
    assert runtime.device == "cpu"
    assert runtime.conditions()["threads"] == str(torch.get_num_threads())


def test_torch_model_that_does_not_run_is_a_device_error():
    with pytest.raises(DeviceError, match="torch does not run the model"):
        EagerTorch(nn.Linear(3, 4)).open(b"", {"x": np.zeros((1, 5), np.float32)})


# -- which one ---------------------------------------------------------------------------------------------------------


def offer(monkeypatch, gpu, cuda, tensorrt):
    """Let this machine have a GPU, onnxruntime's CUDA provider, and TensorRT, or not."""

    def open_tensorrt_here(found):
        if not tensorrt:
            raise DeviceError("no TensorRT")
        return TensorRt(SimpleNamespace(), found)

    monkeypatch.setattr(runtime_module, "visible_gpu", lambda: gpu)
    monkeypatch.setattr(runtime_module, "has_cuda_provider", lambda: cuda)
    monkeypatch.setattr(tensorrt_module, "open_tensorrt", open_tensorrt_here)


@pytest.mark.parametrize(
    ("kind", "wanted", "gpu", "cuda", "tensorrt", "expected"),
    [
        ("cpu", None, "RTX", True, True, OnnxRuntimeCpu),
        ("gpu", None, "RTX", True, True, TensorRt),
        ("gpu", None, "RTX", True, False, OnnxRuntimeCuda),
        ("gpu", None, "RTX", False, False, OnnxRuntimeCpu),
        ("gpu", None, None, True, False, OnnxRuntimeCpu),
        ("gpu", "onnxruntime", "RTX", True, True, OnnxRuntimeCuda),
        ("gpu", "tensorrt", "RTX", True, True, TensorRt),
    ],
)
def test_board_gets_the_runtime_of_its_deployment(monkeypatch, kind, wanted, gpu, cuda, tensorrt, expected):
    offer(monkeypatch, gpu, cuda, tensorrt)
    assert isinstance(open_runtime(kind, wanted), expected)


def test_tensorrt_that_is_wanted_and_not_here_is_an_error_and_not_replaced(monkeypatch):
    offer(monkeypatch, "RTX", cuda=True, tensorrt=False)
    with pytest.raises(DeviceError, match="no TensorRT"):
        open_runtime("gpu", "tensorrt")
    with pytest.raises(InputError, match="NVIDIA GPU"):
        open_runtime("cpu", "tensorrt")


# -- TensorRT ----------------------------------------------------------------------------------------------------------


def test_tensorrt_without_a_gpu_or_a_package_says_how_to_get_it(monkeypatch):
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        open_tensorrt(None)
    for package in tensorrt_module.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DeviceError, match=r"tensorrt: .*tensorrt_rtx: .*pip install"):
        open_tensorrt("RTX")


def test_engine_is_built_for_the_shapes_that_are_asked(perceptron):
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(logger(trt))
    network = parse(trt, builder, perceptron)
    config = configure(trt, builder, {"input": ((1, 6), (4, 6), (8, 6))})
    assert config.num_optimization_profiles == 1
    assert len(bytes(serialize(trt, builder, network, config))) > perceptron.stat().st_size
    assert parse(trt, builder, perceptron.read_bytes()).num_layers == network.num_layers


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the engine runs")
def test_engine_that_finds_no_gpu_is_a_device_error_with_what_tensorrt_says(perceptron):
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(DeviceError, match=r"tensorrt_rtx .* does not run .*perceptron\.onnx: .*(?i:cuda)"):
        TensorRt(trt, "no GPU").open(perceptron, {"input": small_onnx.samples(1)})


def test_file_that_tensorrt_cannot_read_is_refused_with_its_complaint():
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(RefusedError, match=r"\w"):
        parse(trt, trt.Builder(logger(trt)), b"no protobuf")


def test_package_that_would_choose_the_precision_itself_is_refused(perceptron):
    trt = SimpleNamespace(NetworkDefinitionCreationFlag=object, BuilderFlag=object)
    with pytest.raises(RefusedError, match="strongly typed"):
        parse(trt, None, perceptron)


class Engine:
    """What :func:`bind` asks of an engine and of its context: two inputs, one output of twice the width."""

    num_io_tensors = 3
    names = ("x", "mask", "y")
    kinds = ("HALF", "INT32", "FLOAT")

    def __init__(self):
        self.shapes, self.addresses = {}, {}
        self.extent = 2

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.kinds[self.names.index(name)])

    def is_shape_inference_io(self, name):
        return False

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def get_tensor_shape(self, name):
        assert set(self.shapes) == {"x", "mask"}, "shapes of outputs are known only when those of all inputs are"
        return (self.shapes["x"][0], self.extent)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address


FEEDS = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "mask": np.ones((4, 1), np.int64)}


def test_inputs_and_outputs_of_an_engine_get_memory_of_its_types():
    engine = Engine()
    tensors = bind(engine, engine, FEEDS, torch.device("cpu"))
    assert engine.addresses == {name: tensor.data_ptr() for name, tensor in tensors.items()}
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "x": (torch.float16, (4, 3)),
        "mask": (torch.int32, (4, 1)),
        "y": (torch.float32, (4, 2)),
    }
    assert tensors["x"].tolist() == FEEDS["x"].tolist()


def test_engine_whose_outputs_have_no_fixed_size_is_a_device_error():
    engine = Engine()
    engine.extent = -1
    with pytest.raises(DeviceError, match="y depends on the values"):
        bind(engine, engine, FEEDS, torch.device("cpu"))


def test_call_of_an_engine_returns_when_the_gpu_is_done():
    done = []

    def execute(stream):
        done.append(("queued on", stream))
        return True

    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: done.append("waited"))
    EngineCall(SimpleNamespace(execute_async_v3=execute), stream, ())()
    assert done == [("queued on", 7), "waited"]


def test_batch_that_an_engine_does_not_take_is_a_device_error():
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    with pytest.raises(DeviceError, match="did not queue"):
        EngineCall(SimpleNamespace(execute_async_v3=lambda _: False), stream, ())()


def test_engine_is_built_once_for_the_same_file_and_shapes(perceptron, monkeypatch):
    built = []
    for name in ("parse", "configure", "logger"):
        monkeypatch.setattr(tensorrt_module, name, lambda *_: SimpleNamespace(lines=[]))
    monkeypatch.setattr(tensorrt_module, "serialize", lambda *_: built.append("engine") or len(built))
    runtime = TensorRt(SimpleNamespace(Builder=lambda log: None), "RTX")
    feeds = [{"input": small_onnx.samples(size)} for size in (1, 2)]
    assert [runtime.engine(perceptron, feeds[0]) for _ in range(3)] == [1, 1, 1]
    assert runtime.engine(perceptron, feeds[1]) == 2, "another shape is another engine"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("wanted", ["tensorrt", "onnxruntime"])
def test_runtime_on_the_gpu_runs_a_batch(perceptron, wanted):
    runtime = open_runtime("gpu", wanted)
    if runtime.device != "gpu":
        pytest.skip("onnxruntime has no CUDA provider here")
    x = small_onnx.samples(5)
    work = runtime.open(perceptron, {"input": x})
    work()
    outputs = work.held[2]["output"].cpu().numpy() if wanted == "tensorrt" else work.binding.copy_outputs_to_cpu()[0]
    np.testing.assert_allclose(outputs, small_onnx.expected(small_onnx.weights(), x), rtol=1e-3, atol=1e-4)

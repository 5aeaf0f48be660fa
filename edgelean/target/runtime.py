"""What runs a model here: the runtimes in which models are deployed, behind one small interface.

A call of the work that a runtime returns is one batch, from inputs that lie in the memory of the device to outputs that
lie there, and it returns when the device is done. Copies between the host and a GPU are not counted: a camera or a
neighbouring network leaves its data on the device as well, and where they are needed they are the same for every
candidate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from edgelean.board import Precision
from edgelean.errors import DeviceError, InputError
from edgelean.sensors.kernel_files import processor_name
from edgelean.sensors.window import Work
from edgelean.target.candidate import Feeds

if TYPE_CHECKING:
    from torch import nn

Device = Literal["cpu", "gpu"]
RuntimeName = Literal["onnxruntime", "tensorrt"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Runtime(Protocol):
    """Loads models on one device of this machine."""

    @property
    def name(self) -> str:
        """``"onnxruntime"``, ``"tensorrt"``, ``"torch"``."""
        ...

    @property
    def device(self) -> Device:
        """Where models run: a board of another kind is not measured by it."""
        ...

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions in which it really computes; the first one stands in for any other."""
        ...

    def conditions(self) -> dict[str, str]:
        """Return runtime, threads and device in words: what has to be equal for two readings to be compared."""
        ...

    def open(self, model: Path | bytes, feeds: Feeds) -> Work:
        """Return a call that runs one batch, in a session of its own that was tried once.

        Raises
        ------
        DeviceError
            The runtime does not load or does not run the model.
        """
        ...


@dataclass(frozen=True)
class OnnxRuntimeCpu:
    """onnxruntime on one thread.

    One thread, because the others of a machine that trains are not free, and two threads that wait for each other on
    busy cores were measured 100 times slower than one.
    """

    name: str = "onnxruntime"
    device: Device = "cpu"
    precisions: tuple[Precision, ...] = ("fp32", "int8")

    def conditions(self) -> dict[str, str]:
        """Return the processor, the version of onnxruntime and the number of threads."""
        return {"processor": processor_name(), "runtime": _onnxruntime_words(CPU), "threads": "1"}

    def open(self, model: Path | bytes, feeds: Feeds) -> Work:
        """Return a call of a new session whose inputs and outputs are bound once; see :class:`Runtime`."""
        return _bound(model, feeds, [CPU], "cpu")


@dataclass(frozen=True)
class OnnxRuntimeCuda:
    """onnxruntime on the first CUDA GPU that is visible; inputs and outputs stay in its memory."""

    gpu: str
    name: str = "onnxruntime"
    device: Device = "gpu"
    precisions: tuple[Precision, ...] = ("fp32", "fp16")

    def conditions(self) -> dict[str, str]:
        """Return the GPU, the processor that feeds it, and the version of onnxruntime."""
        return {"gpu": self.gpu, "processor": processor_name(), "runtime": _onnxruntime_words(CUDA), "threads": "1"}

    def open(self, model: Path | bytes, feeds: Feeds) -> Work:
        """Return a call of a new session; see :class:`Runtime`.

        FP32 is computed as FP32, not rounded to TF32: so it is verified, and so the other runtimes compute it.
        """
        return _bound(model, feeds, [(CUDA, {"device_id": "0", "use_tf32": "0"}), CPU], "cuda")


@dataclass(frozen=True)
class EagerTorch:
    """A PyTorch model as it trains, in inference mode: for comparison, since nothing is deployed like this.

    Attributes
    ----------
    model
        In evaluation mode and on its device. It takes the feeds by their order.
    """

    model: nn.Module
    name: str = "torch"
    precisions: tuple[Precision, ...] = ("fp32", "fp16")

    @property
    def device(self) -> Device:
        """Where the parameters of the model are."""
        return "gpu" if self._place().type == "cuda" else "cpu"

    def conditions(self) -> dict[str, str]:
        """Return the device, the version of torch and its number of threads, which is left as it is."""
        import torch

        words = {"processor": processor_name(), "runtime": f"torch {torch.__version__}, eager"}
        if self.device == "gpu":
            return words | {"gpu": torch.cuda.get_device_name(self._place())}
        return words | {"threads": str(torch.get_num_threads())}

    def open(self, model: Path | bytes, feeds: Feeds) -> Work:
        """Return a call of the model that was given in the beginning; no file is looked at. See :class:`Runtime`."""
        import torch

        place = self._place()
        inputs = [torch.as_tensor(feed, device=place) for feed in feeds.values()]

        def call() -> object:
            with torch.inference_mode():
                result = self.model(*inputs)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            return result

        return _tried(call, "torch", "the model")

    def _place(self) -> Any:
        import torch

        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))


def open_runtime(kind: Device, wanted: RuntimeName | None = None) -> Runtime:
    """Return the runtime in which models are deployed on this machine, for a board of a kind.

    Parameters
    ----------
    kind
        ``"cpu"``: onnxruntime. ``"gpu"``: TensorRT where it can be imported and there is a GPU, else onnxruntime on the
        GPU, else onnxruntime on the processor, which is then no measurement of such a board.
    wanted
        Take this one.

    Raises
    ------
    InputError
        TensorRT is wanted for a processor.
    DeviceError
        TensorRT is wanted and not here.
    """
    if kind == "cpu":
        if wanted == "tensorrt":
            raise InputError("--runtime tensorrt: it needs an NVIDIA GPU, and here the model runs on the processor")
        return OnnxRuntimeCpu()
    gpu = visible_gpu()
    if wanted != "onnxruntime":
        from edgelean.target.tensorrt import open_tensorrt

        try:
            return open_tensorrt(gpu)
        except DeviceError:
            if wanted == "tensorrt":
                raise
    return OnnxRuntimeCuda(gpu) if gpu is not None and has_cuda_provider() else OnnxRuntimeCpu()


def visible_gpu() -> str | None:
    """Return the name of the first CUDA GPU that is visible, or None where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def has_cuda_provider() -> bool:
    """Tell whether this build of onnxruntime can use a CUDA GPU."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def _onnxruntime_words(provider: str) -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}, {provider}"


def _bound(model: Path | bytes, feeds: Feeds, providers: list[Any], device: str) -> Work:
    """Return a call of a new session on one thread, with inputs and outputs in the memory of the device.

    Bound once, so that a call neither converts nor allocates in Python: that took 4 us, 6 % of a small network.
    """
    import onnxruntime

    session = _session(model, providers)
    binding = session.io_binding()
    name = _name_of(model)
    try:
        blocks = {key: np.ascontiguousarray(feed) for key, feed in feeds.items()}
        inputs = {key: onnxruntime.OrtValue.ortvalue_from_numpy(block, device, 0) for key, block in blocks.items()}
        for key, value in inputs.items():
            binding.bind_ortvalue_input(key, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, device, 0)
    except Exception as error:  # onnxruntime raises kinds of its own that share no base
        raise DeviceError(f"onnxruntime does not take the inputs of {name}: {_first_line(error)}") from error
    run = _BoundCall(session, binding, inputs) if device == "cpu" else _SynchronisedCall(session, binding, inputs)
    return _tried(run, "onnxruntime", name)


@dataclass(frozen=True)
class _BoundCall:
    """One run of a session; holds the inputs, whose memory the session reads without owning it."""

    session: Any
    binding: Any
    inputs: Mapping[str, Any]

    def __call__(self) -> object:
        return self.session.run_with_iobinding(self.binding)


class _SynchronisedCall(_BoundCall):
    def __call__(self) -> object:
        self.session.run_with_iobinding(self.binding)
        return self.binding.synchronize_outputs()


def _session(model: Path | bytes, providers: list[Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong comes as an exception
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime raises kinds of its own that share no base
        version = onnxruntime.__version__
        raise DeviceError(f"onnxruntime {version} does not load {_name_of(model)}: {_first_line(error)}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} cannot start its {wanted}, it offers "
            f"{', '.join(session.get_providers())}: install the CUDA and cuDNN that it was built for"
        )
    return session


def _tried(call: Work, runtime: str, name: str) -> Work:
    """Return the call after it went well once."""
    try:
        call()
    except Exception as error:  # onnxruntime and torch raise many kinds
        raise DeviceError(f"{runtime} does not run {name}: {_first_line(error)}") from error
    return call


def _name_of(model: Path | bytes) -> str:
    return "a probe" if isinstance(model, bytes) else str(model)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

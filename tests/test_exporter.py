import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_onnx
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.onnx._internal.exporter import _registration

from edgelean.errors import InputError, MissingError, VerificationError
from edgelean.exporter import export_onnx, load_target, target_names, to_fp16
from edgelean.exporter.recorded import check_recording, recording_of
from edgelean.exporter.translations import read_once
from edgelean.nn.lru import LRU


class Cnn(nn.Module):
    """Convolutions with batch norm around a shortcut, dropout, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.drop(torch.relu(self.block(x) + x).mean((2, 3))))


class TwoInTwoOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(5, 8), nn.Linear(3, 8)

    def forward(self, a, b):
        joined = torch.tanh(self.left(a)) * self.right(b)
        if self.training:
            joined = joined + 1
        return joined, joined.sum(1)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.mix, self.head = nn.Linear(1, 6), LRU(6, 8), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.mix(self.read(x)).mean(1))


def cnn():
    torch.manual_seed(0)
    model = Cnn()
    with torch.no_grad():  # batch norm has to have something to fold
        for _ in range(3):
            model(3 * torch.randn(16, 1, 8, 8) + 1)
    return model


MODELS = {
    "cnn": (cnn, [(1, 8, 8)]),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)), [(6,)]),
    "lru": (Sequence, [(20, 1)]),
    "two": (TwoInTwoOut, [(5,), (3,)]),
}


def inputs(shapes, batch, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every model of the table, with its file; exported while in training mode, from a single sample."""
    folder, files = tmp_path_factory.mktemp("exported"), {}
    for name, (make, shapes) in MODELS.items():
        torch.manual_seed(7)
        model = make()
        path = export_onnx(model, inputs(shapes, 1), folder / f"{name}.onnx", metadata={"seed": "7", "recipe": name})
        files[name] = (model, path, shapes)
    return files


def run(path, arrays):
    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {name: array.numpy() for name, array in zip(names, arrays, strict=True)})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_file_computes_what_the_model_infers_at_every_batch_size(exported, name, batch):
    model, path, shapes = exported[name]
    arrays = inputs(shapes, batch)
    with torch.no_grad():
        wanted = model.eval()(*arrays)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for found, tensor in zip(run(path, arrays), wanted, strict=True):
        assert np.linalg.norm(found - tensor.numpy()) <= 1e-5 * tensor.norm()


def test_inputs_and_outputs_are_numbered_and_their_batch_is_free(exported):
    graph = onnx.load(exported["two"][1]).graph
    assert [value.name for value in graph.input] == ["input", "input_1"]
    assert [value.name for value in graph.output] == ["output", "output_1"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dim.dim_value for dim in graph.input[1].type.tensor_type.shape.dim[1:]] == [3]


def test_batch_norm_and_dropout_are_gone(exported):
    operators = {node.op_type for node in onnx.load(exported["cnn"][1]).graph.node}
    assert operators == {"Conv", "Relu", "Add", "ReduceMean", "Gemm"}


def test_metadata_can_be_read_back_in_the_runtime(exported):
    metadata = onnxruntime.InferenceSession(exported["cnn"][1]).get_modelmeta().custom_metadata_map
    assert metadata == {"seed": "7", "recipe": "cnn", "edgelean.precision": "fp32"}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_source_is_left_in_the_file(exported, name):
    content = exported[name][1].read_bytes()
    for trace in (__file__, str(Path(torch.__file__).parent), "stack_trace", "forward"):
        assert trace.encode() not in content


def test_a_second_export_gives_the_same_bytes(exported, tmp_path):
    model, path, shapes = exported["cnn"]
    model.train()
    again = export_onnx(
        model, inputs(shapes, 5, seed=9), tmp_path / "again.onnx", metadata={"recipe": "cnn", "seed": "7"}
    )
    assert again.read_bytes() == path.read_bytes()


SCRIPT = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from test_exporter import MODELS, inputs
from edgelean.exporter import export_onnx
make, shapes = MODELS["cnn"]
torch.manual_seed(7)
path = export_onnx(make(), inputs(shapes, 2), sys.argv[2], metadata={"recipe": "cnn", "seed": "7"})
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_another_process_gives_the_same_bytes_and_says_nothing(exported, tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "there.onnx")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    there = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert there.stdout.split() == [hashlib.sha256(exported["cnn"][1].read_bytes()).hexdigest()]
    assert there.stderr == ""


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Unreadable(nn.Module):
    def forward(self, x):
        y = torch.from_numpy(x.detach().numpy() * 2)
        return y if y.sum() > 0 else -y


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x[:, :, None] * x[:, None, :]).real


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(3, -1)


class Mismatched(nn.Module):
    def forward(self, x):
        return x @ torch.ones(5, 5)


REFUSALS = [
    (Unreadable, ["numpy", "test_exporter.py:", "use the function of torch", "would not depend on input"]),
    (Eigenvalues, ["operator aten.linalg_eig of the layer 1 (Eigenvalues)", "replace it"]),
    (FixedBatch, ["one batch size only", "x.shape[0]"]),
    (Mismatched, ["RuntimeError", "test_exporter.py:"]),
]


def test_translations_are_read_once_for_a_process_and_other_exports_are_left_alone(monkeypatch):
    reads = []
    kind = _registration.ONNXRegistry
    monkeypatch.setattr(kind, "from_torchlib", staticmethod(lambda opset_version: reads.append(opset_version) or "all"))
    torchs_own = kind.from_torchlib
    for opset in (17, 17, 18, 17):
        with read_once():
            assert kind().from_torchlib(opset_version=opset) == "all"
    assert reads == [17, 18]
    assert kind.from_torchlib is torchs_own


@pytest.mark.parametrize(("make", "words"), REFUSALS)
def test_what_onnx_cannot_express_is_named_in_one_line(make, words, tmp_path, capfd):
    model = nn.Sequential(nn.Dropout(), make())
    model[0].eval()
    with pytest.raises(InputError) as refusal:
        export_onnx(model, (torch.randn(3, 4),), tmp_path / "no.onnx", metadata={})
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())
    assert [module.training for module in model.modules()] == [True, False, True]
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_traced_is_recorded_and_the_file_says_so_and_why(tmp_path, capfd):
    model, x = Branching(), torch.rand(3, 4) + 1
    path = export_onnx(model, (x,), tmp_path / "m.onnx", metadata={"seed": "7"})
    words = recording_of(path)
    assert "recording one path" in words
    assert "test_exporter.py:" in words
    assert "decides by the value of a tensor" in words
    assert str(tmp_path) not in words
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input": x[:1].numpy()})
    assert np.array_equal(found, x[:1].numpy())
    check_recording(path, model, (x,))
    with pytest.raises(InputError, match="other outputs than the model"):
        check_recording(path, model, (torch.cat([x, -9 * x]),))
    assert capfd.readouterr() == ("", "")


def test_a_traced_file_says_nothing_of_a_recording(tmp_path):
    path = export_onnx(nn.Linear(4, 3), (torch.randn(3, 4),), tmp_path / "m.onnx", metadata={})
    assert recording_of(path) == ""


def test_every_module_is_left_in_its_own_mode_and_the_random_state_alone(tmp_path, capfd):
    model = cnn()
    model.block.eval()
    modes = [module.training for module in model.modules()]
    model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    export_onnx(model, (torch.randn(2, 1, 8, 8, generator=torch.Generator()),), tmp_path / "m.onnx", metadata={})
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert model.stem[0].weight.requires_grad
    assert torch.equal(model.stem[0].weight.grad, torch.ones_like(model.stem[0].weight))
    assert capfd.readouterr() == ("", "")


def test_a_file_with_another_opset_than_asked_is_refused(tmp_path):
    # torch cannot bring ReduceMean back to opset 17, and writes 18 without an error.
    with pytest.raises(VerificationError, match="asked for ONNX opset 17, the exporter wrote opset 18"):
        export_onnx(cnn(), (torch.zeros(2, 1, 8, 8),), tmp_path / "m.onnx", metadata={}, opset=17)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_in_the_graph_and_not_at_its_ends(exported, name, tmp_path):
    _, path, shapes = exported[name]
    assert to_fp16(path, tmp_path / "half.onnx") == ()
    half = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(half, full_check=True)
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert {tensor.data_type for tensor in half.graph.initializer} & floats == {TensorProto.FLOAT16}
    arrays = inputs(shapes, 6)
    for found, wanted in zip(run(tmp_path / "half.onnx", arrays), run(path, arrays), strict=True):
        assert found.dtype == np.float32
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert 1e-6 < error < 5e-3


def test_half_precision_keeps_the_metadata_and_gives_the_same_bytes_again(exported, tmp_path):
    path = exported["cnn"][1]
    to_fp16(path, tmp_path / "a.onnx")
    to_fp16(path, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert metadata == {"seed": "7", "recipe": "cnn", "edgelean.precision": "fp16"}
    assert not any("onnxruntime" in entry for entry in sys.path if entry.endswith("transformers"))


def scan(path, decay):
    """A Scan whose body multiplies the state by the value ``decay``, made inside or outside of the body."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            *([] if decay == "outside" else [helper.make_node("Sigmoid", ["zero"], ["inside"])]),
            helper.make_node("Mul", ["state", decay], ["decayed"]),
            helper.make_node("Add", ["decayed", "x"], ["next"]),
            helper.make_node("Identity", ["next"], ["y"]),
        ],
        "body",
        [value("state", TensorProto.FLOAT, [3]), value("x", TensorProto.FLOAT, [3])],
        [value("next", TensorProto.FLOAT, [3]), value("y", TensorProto.FLOAT, [3])],
        [helper.make_tensor("zero", TensorProto.FLOAT, [3], [0.0] * 3)],
    )
    nodes = [
        helper.make_node("Sigmoid", ["start"], ["outside"]),
        helper.make_node("Mul", ["input", "input"], ["squares"]),
        helper.make_node("Scan", ["start", "squares"], ["last", "states"], body=body, num_scan_inputs=1),
        helper.make_node("Add", ["states", "outside"], ["output"]),
    ]
    return small_onnx.save(path, nodes, {"start": np.zeros(3, np.float32)}, (3, 3), batch=9)


def test_a_recurrence_stays_in_single_precision(tmp_path):
    path = scan(tmp_path / "scan.onnx", "inside")
    assert to_fp16(path, tmp_path / "half.onnx") == ("Scan",)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "half.onnx").metadata_props}
    assert metadata == {"edgelean.precision": "fp16", "edgelean.kept_in_fp32": "Scan"}
    x = (torch.linspace(-1, 1, 27).reshape(9, 3),)
    assert np.allclose(run(tmp_path / "half.onnx", x)[0], run(path, x)[0], rtol=2e-3)


def test_a_conversion_that_mixes_types_is_refused(tmp_path):
    path = scan(tmp_path / "scan.onnx", "outside")
    with pytest.raises(VerificationError, match=r"half\.onnx is not valid ONNX"):
        to_fp16(path, tmp_path / "half.onnx")


def test_every_export_target_of_the_shelf_is_read():
    targets = {name: load_target(name) for name in target_names()}
    assert set(targets) == {f"{form}-{kind}" for form in ("onnx", "tensorrt") for kind in ("fp32", "fp16", "int8")}
    assert all(name == f"{target.format}-{target.precision}" for name, target in targets.items())
    assert len({target.file for target in targets.values()}) == len(targets)
    assert all(target.graph == target.file for target in targets.values() if target.format == "onnx")
    assert targets["tensorrt-int8"].graph != targets["onnx-int8"].graph
    assert targets["onnx-fp32"].tolerances.rel_l2 < targets["onnx-fp16"].tolerances.rel_l2


def test_an_unknown_export_target_comes_with_the_nearest_names():
    with pytest.raises(MissingError, match=r"no export target named 'onnx-fp61'.*onnx-fp16"):
        load_target("onnx-fp61")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('file = "../model.onnx"', "file"),
        ("opset = 17", "opset"),
        ('precision = "int3"', "precision"),
        ("speed = 3", "speed: is not a known key"),
    ],
)
def test_a_malformed_export_target_names_the_file_and_the_key(line, complaint, tmp_path):
    shipped = {"title": '"t"', "format": '"onnx"', "precision": '"fp32"', "opset": "18"}
    shipped |= {"file": '"m.onnx"', "graph": '"m.onnx"'}
    key, value = line.split(" = ")
    lines = [f"{name} = {text}" for name, text in (shipped | {key: value}).items()]
    tolerances = ["[tolerances]", "rel_l2 = 1e-5", "agreement = 1.0", "near_tie = 0.0", "metric_drop = 0.0"]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(lines + tolerances))
    with pytest.raises(InputError, match=rf"mine\.toml: {complaint}"):
        load_target(path)


def test_importing_the_exporter_and_the_verifier_loads_no_framework():
    code = "import sys, edgelean.exporter, edgelean.verifier; print({'torch', 'onnx', 'onnxruntime'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_operator_that_takes_a_constant_in_fp32_only_gets_it(tmp_path):
    class Raised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return nn.functional.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")

    model, x = Raised().eval(), torch.randn(2, 3, 8, 8)
    to_fp16(export_onnx(model, (x,), tmp_path / "m.onnx", metadata={}), tmp_path / "h.onnx")
    found = onnxruntime.InferenceSession(tmp_path / "h.onnx").run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-2)

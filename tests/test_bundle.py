import errno
import hashlib
import json
import shutil

import pytest
import small_onnx

from edgelean.errors import InputError, MissingError, VerificationError
from edgelean.exporter import BundleFacts, check_bundle, write_bundle

PASSED = {"file": "model.onnx", "passed": True, "reason": "On all 23 test samples its outputs are right."}
FACTS = BundleFacts(
    title="digits on jetson-orin",
    batch=8,
    checks=[PASSED],
    verdicts=[{"quantity": "latency", "outcome": "met"}],
    versions={"torch": "2.13.0"},
    labels=["zero", "one", "two", "three"],
    notes=["No TensorRT engine was asked for."],
)


RUNNER = {"run_onnx.py", "running.py", "samples.py"}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "scratch").mkdir()
    return small_onnx.save_perceptron(tmp_path / "scratch" / "model.onnx")


@pytest.fixture
def bundle(tmp_path, model):
    return write_bundle(tmp_path / "run" / "bundle", [model], FACTS)


def failed(facts=FACTS):
    return BundleFacts(
        **vars(facts) | {"checks": [PASSED, {"file": "model.onnx", "passed": False, "reason": "It is off."}]}
    )


def test_the_manifest_has_size_and_hash_of_every_other_file(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.onnx", "README.md", *RUNNER}
    for name, entry in manifest["files"].items():
        content = (bundle / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_checking_a_bundle_returns_what_was_written(bundle, model):
    manifest = check_bundle(bundle)
    assert manifest["versions"] == FACTS.versions
    assert manifest["verified"] is True
    assert manifest["batch"] == 8
    assert manifest["checks"] == FACTS.checks
    assert manifest["verdicts"] == FACTS.verdicts
    assert manifest["labels"] == FACTS.labels
    assert (bundle / "model.onnx").read_bytes() == model.read_bytes()


def test_the_same_files_and_facts_give_the_same_manifest(bundle, model, tmp_path):
    again = write_bundle(tmp_path / "again", [model], FACTS)
    assert (again / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()


def test_the_readme_has_the_exact_commands(bundle):
    readme = (bundle / "README.md").read_text()
    assert "python run_onnx.py INPUT.npy --model model.onnx" in readme
    assert "--minShapes=input:1x6 --optShapes=input:8x6 --maxShapes=input:8x6 --saveEngine=model.engine" in readme
    assert PASSED["reason"] in readme
    assert FACTS.notes[0] in readme
    assert "Not verified" not in readme


@pytest.mark.parametrize("facts", [failed(), BundleFacts(title="nothing was checked", batch=1)])
def test_a_bundle_that_did_not_pass_is_marked_so(facts, model, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", [model], facts)
    assert check_bundle(bundle)["verified"] is False
    assert "**Not verified: do not deploy.**" in (bundle / "README.md").read_text()


def test_a_bundle_is_replaced_as_a_whole(bundle, tmp_path):
    other = small_onnx.save_perceptron(tmp_path / "other.onnx", small_onnx.weights(seed=4))
    write_bundle(bundle, [other], BundleFacts(title="another", batch=1))
    assert set(check_bundle(bundle)["files"]) == {"other.onnx", "README.md", *RUNNER}
    assert not (bundle / "model.onnx").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle, model, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    copy = shutil.copyfile

    def copy_until_full(source, place):
        if place.name == "run_onnx.py":
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, place)

    monkeypatch.setattr(shutil, "copyfile", copy_until_full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(bundle, [model], FACTS)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_with_something_else_is_not_overwritten(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="is not a bundle"):
        write_bundle(tmp_path / "mine", [model], FACTS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years"


def test_files_that_are_missing_or_have_a_taken_name_are_refused(model, tmp_path):
    with pytest.raises(MissingError, match=r"gone\.onnx"):
        write_bundle(tmp_path / "b", [tmp_path / "gone.onnx"], FACTS)
    with pytest.raises(InputError, match=r"called model\.onnx already"):
        write_bundle(tmp_path / "b", [model, model], FACTS)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"called manifest\.json already"):
        write_bundle(tmp_path / "b", [tmp_path / "manifest.json"], FACTS)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["model.onnx", "README.md", *sorted(RUNNER)])
def test_a_changed_file_is_named(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(VerificationError, match=f"{name}: is not the file"):
        check_bundle(bundle)


def test_a_missing_file_is_named(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(VerificationError, match=r"model\.onnx: the manifest lists it, and it is not there"):
        check_bundle(bundle)


OUTSIDE = [
    "../secret",
    "/etc/hostname",
    "sub/../../secret",
    "..\\secret",
    "..",
    "",
    ".",
    "C:secret",
    "a\0b",
    "sub/inside",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_name_a_file_outside(bundle, name):
    (bundle.parent / "secret").write_text("key")
    rewrite(bundle, checks=[], files={name: {"sha256": hashlib.sha256(b"key").hexdigest(), "bytes": 3}})
    with pytest.raises(InputError, match="leads out of the bundle"):
        check_bundle(bundle)


@pytest.mark.parametrize("where", ["../secret", "README.md"])
def test_a_link_is_no_file_of_a_bundle(bundle, where):
    (bundle.parent / "secret").write_text("key")
    (bundle / "inside").symlink_to(where)
    rewrite(bundle, checks=[], files={"inside": {"sha256": hashlib.sha256(b"key").hexdigest(), "bytes": 3}})
    with pytest.raises(InputError, match="leads out of the bundle"):
        check_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"checks": [{"file": "../model.onnx"}]},
        {"checks": [{"file": "other.onnx"}]},
        {"forms": [{"form": "step", "files": ["/etc/hostname"]}]},
        {"checks": "model.onnx"},
    ],
)
def test_nothing_in_a_manifest_speaks_of_a_file_that_was_not_hashed(bundle, change):
    rewrite(bundle, **change)
    with pytest.raises(InputError, match="do not use this bundle"):
        check_bundle(bundle)


def test_a_name_that_is_there_twice_is_refused(bundle):
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"model.onnx": {', '"model.onnx": {}, "model.onnx": {'))
    with pytest.raises(InputError, match=r"'model\.onnx' is there twice"):
        check_bundle(bundle)


def test_two_names_that_are_one_on_another_system_are_refused(bundle):
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    rewrite(bundle, files=files | {"Model.ONNX": files["model.onnx"]})
    with pytest.raises(InputError, match="two names are one"):
        check_bundle(bundle)


@pytest.mark.parametrize("name", ["numpy.py", "onnxruntime.so", "samples.pyc", "numpy/__init__.py"])
def test_what_python_would_import_in_the_place_of_a_package_is_named(bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("print('mine')")
    with pytest.raises(VerificationError, match=f"{name.split('/')[0]}: is in the bundle, and the manifest does not"):
        check_bundle(bundle)


def test_data_that_a_user_lays_beside_it_does_no_harm(bundle):
    (bundle / "INPUT.npy").write_bytes(b"mine")
    assert check_bundle(bundle)["verified"] is True


def test_an_engine_brings_its_runner_and_the_command(bundle, model, tmp_path):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"an engine")
    both = write_bundle(tmp_path / "both", [model, engine], FACTS)
    assert set(check_bundle(both)["files"]) == {"model.onnx", "model.engine", "README.md", "run_tensorrt.py", *RUNNER}
    assert "python run_tensorrt.py INPUT.npy --model model.engine" in (both / "README.md").read_text()
    assert "run_tensorrt" not in (bundle / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "complaint"), [({"files": ["model.onnx"]}, "files: is missing"), ({"format": 99}, "format: must be 3")]
)
def test_a_manifest_of_another_kind_is_refused_with_its_key(bundle, change, complaint):
    rewrite(bundle, **change)
    with pytest.raises(InputError, match=complaint):
        check_bundle(bundle)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path):
    with pytest.raises(MissingError, match=r"manifest\.json: not found"):
        check_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        check_bundle(tmp_path)


def rewrite(bundle, **change):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_the_readme_of_a_sequence_model_has_both_forms(model, tmp_path):
    step = small_onnx.save_perceptron(tmp_path / "model.step.onnx")
    cost = {"provenance": "modelled", "latency_ms": 2.5, "call_ms": 0.25}
    forms = [
        {"form": "sequence", "files": ["model.onnx"], "chosen": False, **cost},
        {"form": "step", "files": ["model.step.onnx"], "chosen": True, **cost},
    ]
    stream = {"sequence_length": 10, "state_size": 33, "answers": "last"}
    facts = BundleFacts(**vars(FACTS) | {"form": "step", "forms": forms, "stream": stream})
    bundle = write_bundle(tmp_path / "two", [model, step], facts)
    manifest, readme = check_bundle(bundle), (bundle / "README.md").read_text()
    assert (manifest["form"], manifest["forms"], manifest["stream"]) == ("step", forms, stream)
    assert "python run_onnx.py INPUT.npy --model model.onnx" in readme
    assert "INPUT.npy --model model.step.onnx" not in readme
    assert "python run_onnx.py --stream FILE --model model.step.onnx" in readme
    assert "| step | `model.step.onnx` | 2.5 ms, modelled | 0.25 ms | chosen for the board |" in readme
    assert "takes 10 time steps" in readme

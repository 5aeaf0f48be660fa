"""A bundle is looked at again, wherever it lies."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import onnx
import pytest
import small_onnx
from onnx import numpy_helper
from typer.testing import CliRunner

from edgelean.cli import app, main
from edgelean.errors import InputError, MissingError
from edgelean.evidence import MOST_BYTES, Evidence, read_evidence, write_evidence
from edgelean.exporter import BundleFacts, check_bundle, load_target, write_bundle
from edgelean.recheck import verify_again
from edgelean.recipe import METRICS
from edgelean.verifier import verify

FP32 = load_target("onnx-fp32")


def accuracy(found, wanted):
    return float((found.argmax(1) == wanted).mean())


def proof(count=40, name="accuracy"):
    x = small_onnx.samples(count)
    outputs = small_onnx.expected(small_onnx.weights(), x).astype(np.float32)
    targets = outputs.argmax(1)
    targets[: count // 4] += 1
    return Evidence(
        batches=[(x[:15],), (x[15:],)], outputs=outputs, targets=targets % 4, metric=accuracy, metric_name=name
    )


def written(folder, values=None, samples=16, name="accuracy"):
    """A bundle of one ONNX file, with so many samples; its checks are those of the right file."""
    folder.mkdir()
    evidence = proof(name=name)
    right = small_onnx.save_perceptron(folder / "model.onnx")
    check = verify(right, FP32, evidence)
    if values is not None:
        small_onnx.save_perceptron(folder / "model.onnx", values)
    shipped = write_evidence(evidence, samples, folder / "evidence.npz")
    facts = BundleFacts(title="compass", batch=8, checks=[vars(check)], metric=name)
    return write_bundle(folder / "bundle", [right, *([shipped] if shipped else [])], facts)


def test_a_bundle_that_was_copied_is_verified_on_its_own_samples(tmp_path):
    copied = shutil.copytree(written(tmp_path / "made"), tmp_path / "far" / "away")
    found = verify_again(copied)
    assert found.passed
    assert found.files == len(check_bundle(copied)["files"])
    (check,) = found.checks
    assert (check.samples, check.metric_name) == (16, "accuracy")
    assert 0.5 < check.metric_model == check.metric_artifact < 1
    assert "all 16 shipped samples" in check.reason


def test_a_file_that_is_not_as_good_as_the_model_fails(tmp_path):
    values = small_onnx.weights()
    values["w1"][0, 0] += 0.5
    bundle = written(tmp_path / "made", values)
    found = verify_again(bundle)
    assert not found.passed
    assert "its outputs are off" in found.checks[0].reason
    done = CliRunner().invoke(app, ["verify", str(bundle), "--json"])
    assert done.exit_code == 4
    assert json.loads(done.stdout)["passed"] is False


@pytest.mark.parametrize("name", ["model.onnx", "evidence.npz", "running.py"])
def test_a_tampered_bundle_ends_with_4_and_names_the_file(name, tmp_path, capsys, monkeypatch):
    bundle = written(tmp_path / "made")
    with (bundle / name).open("ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(sys, "argv", ["edgelean", "verify", str(bundle)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    printed = capsys.readouterr()
    assert f"{name}: is not the file that the manifest describes" in printed.err
    assert printed.out == ""


def test_without_samples_only_the_hashes_are_compared_and_the_old_verdict_counts(tmp_path):
    bundle = written(tmp_path / "made", samples=0)
    found = verify_again(bundle)
    assert found.passed
    assert found.checks == ()
    assert "only the hashes were compared" in found.notes[0]
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"verified": False}))
    assert not verify_again(bundle).passed


def test_a_metric_of_the_recipe_is_not_made_up(tmp_path):
    found = verify_again(written(tmp_path / "made", name="closeness"))
    assert found.passed
    assert found.checks[0].metric_name == ""
    assert "closeness is a function of the recipe" in found.notes[0]


def test_an_engine_is_said_not_to_have_been_run(tmp_path):
    bundle = written(tmp_path / "made")
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    manifest = check_bundle(bundle)
    files = [bundle / "model.onnx", bundle / "evidence.npz", engine]
    both = write_bundle(
        tmp_path / "both", files, BundleFacts(title="c", batch=1, checks=manifest["checks"], metric="accuracy")
    )
    assert (
        "model.engine: its hash is right; it was not run: model.engine.json: is not in manifest.json"
        in verify_again(both).notes[0]
    )


def test_what_is_no_bundle_is_said_to_be_none(tmp_path):
    with pytest.raises(MissingError, match="holds no bundle"):
        verify_again(tmp_path)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = written(tmp_path / "made")
    np.savez(
        tmp_path / "trap.npz", input_0=np.array([Trap()], dtype=object), outputs=[1], targets=[1], allow_pickle=True
    )
    files = [bundle / "model.onnx", (tmp_path / "trap.npz").rename(tmp_path / "evidence.npz")]
    checks = check_bundle(bundle)["checks"]
    trapped = write_bundle(tmp_path / "both", files, BundleFacts(title="c", batch=1, checks=checks, metric="accuracy"))
    with pytest.raises(InputError, match=r"evidence\.npz does not hold the samples of a bundle"):
        verify_again(trapped)
    assert not (tmp_path / "trapped").exists()


def test_samples_come_from_all_over_the_split_and_give_the_same_bytes(tmp_path):
    paths = [write_evidence(proof(), 5, tmp_path / f"{i}.npz") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = read_evidence(paths[0], {}, "accuracy", 1)
    whole = np.concatenate([batch[0] for batch in proof().batches])
    rows = [int(np.flatnonzero((whole == row).all(1))[0]) for row in found.batches[0][0]]
    assert (rows[0], rows[-1], len(rows)) == (0, 39, 5)
    assert np.array_equal(found.outputs, proof().outputs[rows])
    assert np.array_equal(found.targets, proof().targets[rows])


def test_large_samples_are_fewer(tmp_path):
    x = np.zeros((30, MOST_BYTES // 40), np.float32)
    large = Evidence(batches=[(x,)], outputs=x[:, :2], targets=x[:, 0], metric=accuracy, metric_name="accuracy")
    path = write_evidence(large, 256, tmp_path / "e.npz")
    assert len(read_evidence(path, METRICS, "accuracy", 1).outputs) == 9
    assert path.stat().st_size <= 1.1 * MOST_BYTES


@pytest.mark.slow
def test_a_finished_run_is_exported_again_to_the_same_bytes_and_verified_on_its_splits(tmp_path, capsys):
    import edgelean
    from edgelean import pipeline

    run = tmp_path / "run"
    recipe = str(small_recipe())
    edgelean.fit(recipe, "raspberry-pi-5", latency="90%", energy="90%", out=run, settings={"epochs": "2"})
    first = {path.name: path.read_bytes() for path in (run / "bundle").iterdir()}
    assert "model.fp16.onnx" not in first
    told = {entry.key: entry.value for entry in onnx.load(run / "bundle" / "model.onnx").metadata_props}
    origin = check_bundle(run / "bundle")["origin"]
    assert {"recipe", "profile", "board", "seed", "plan"} <= set(origin)
    assert all(told[f"edgelean.{key}"] == value for key, value in origin.items())

    report = pipeline.export(run, ["onnx-fp16"])
    assert [check.file for check in report.checks] == ["model.onnx", "model.fp16.onnx"]
    again = {path.name: path.read_bytes() for path in (run / "bundle").iterdir()}
    for name in ("model.onnx", "evidence.npz"):
        assert again[name] == first[name]

    found = verify_again(run)
    assert found.passed
    assert all("all 96 test and all 96 validation samples" in check.reason for check in found.checks)

    spoil(run / "bundle")
    found = verify_again(run)
    assert not found.passed
    assert "In the file the first layer that is off is '11' (Linear)" in found.checks[0].reason


def small_recipe():
    from pathlib import Path

    return Path(__file__).with_name("tiny_recipe.py")


def spoil(bundle):
    """Change the last weight, and write a manifest to which that is the right file."""
    proto, manifest = onnx.load(bundle / "model.onnx"), check_bundle(bundle)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("11.bias"))
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight) + np.arange(10, dtype=np.float32), weight.name)
    )
    onnx.save(proto, bundle.parent / "model.onnx")
    facts = {field: manifest[field] for field in ("title", "batch", "checks", "versions", "metric")}
    write_bundle(bundle, [bundle.parent / "model.onnx"], BundleFacts(**facts | {"checks": manifest["checks"][:1]}))


def test_a_run_that_did_not_end_is_not_exported(tmp_path):
    from edgelean import job, pipeline
    from edgelean.training.run import Run

    asked = job.ask(str(small_recipe()), "raspberry-pi-5")
    Run.create(tmp_path / "run", asked.asked).close()
    with pytest.raises(InputError, match="did not end: finish it with `edgelean fit --resume"):
        pipeline.export(tmp_path / "run", ["onnx-fp16"])
    with pytest.raises(MissingError, match="no export target named 'onnx-fp61'"):
        pipeline.export(tmp_path / "run", ["onnx-fp61"])

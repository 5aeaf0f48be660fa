"""A bundle is data, and a board does what it was asked and nothing else."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import agent_program
import onnx
import pytest
import small_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.external_data_helper import set_external_data
from test_recheck import written

import edgelean.recheck
from edgelean.errors import VerificationError
from edgelean.exporter import BundleFacts, check_bundle, write_bundle
from edgelean.recheck import verify_again
from edgelean.target.remote import Ssh, parse_address

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("edgelean", "export", "devices") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_nothing_that_ships_unpickles_or_hands_text_to_a_shell():
    banned = re.compile(
        r"import pickle|torch\.load\(|allow_pickle=True|shell=True|os\.system|os\.popen|joblib|\byaml\.load|marshal|"
        r"(?<![.\w])(eval|exec)\("
    )
    assert len(SOURCES) > 100
    for path in SOURCES:
        assert not banned.search(path.read_text()), path


SHELL = """#!/bin/sh
# What a server does with the command of a client: its shell reads it.
while [ $# -gt 1 ]; do shift; done
exec sh -c "$1"
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An ssh whose other side is this machine, and a program that prints its arguments between brackets."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SHELL)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    echo = tmp_path / "echo.py"
    echo.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return echo


HOSTILE = [
    *("; touch owned", "$(touch owned)", "`touch owned`", "a b", "-oProxyCommand=x"),
    *("'", '"', "\\", "*", "~", "\n", ""),
]
ANYTHING = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(HOSTILE) | ANYTHING, max_size=4))
def test_every_argument_reaches_the_board_as_it_is(words, server):
    heard = []
    line = Ssh(parse_address("ssh://me@board"), heard.append)
    line.run([sys.executable, str(server), *words], b"", heard.append)
    line.close()
    assert json.loads(heard[-1]) == words
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "run", "program": "touch owned"},
        {"command": "store", "sha256": "../../owned", "ending": "onnx", "size": 0},
        {"command": "store", "sha256": "a" * 64, "ending": "py", "size": 0},
        {"command": "measure", "model": "../" * 9 + "etc/passwd", "feeds": "b" * 64, "runtime": "onnxruntime CPU"},
        {"command": "__class__"},
    ],
)
def test_the_agent_does_what_it_knows_and_writes_nowhere_else(request_, tmp_path):
    with agent_program.modules() as parts:
        cache = parts.cache.Cache(tmp_path / "cache")
        cache.folder.mkdir()
        with pytest.raises(parts.common.RefusedError) as refused:
            parts.agent.answer(request_ | {"patience": {}, "who": "me"}, cache, lambda words: None)
        assert refused.value.kind in ("request", "hash")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_a_model_that_reads_other_files_is_refused_before_it_is_run(location, tmp_path):
    bundle = written(tmp_path / "made")
    proto = onnx.load(bundle / "model.onnx")
    set_external_data(proto.graph.initializer[0], location)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    manifest = check_bundle(bundle)
    facts = BundleFacts(title="c", batch=1, checks=manifest["checks"], metric="accuracy")
    other = write_bundle(tmp_path / "other", [tmp_path / "model.onnx", bundle / "evidence.npz"], facts)
    with pytest.raises(VerificationError, match="lies in another file, of which the manifest has no hash"):
        verify_again(other)


def test_a_hash_is_compared_before_a_file_is_opened(tmp_path, monkeypatch):
    bundle = written(tmp_path / "made")
    small_onnx.save_perceptron(bundle / "model.onnx", small_onnx.weights(seed=5))
    monkeypatch.setattr(edgelean.recheck, "verify", lambda *told: pytest.fail("it was run"))
    monkeypatch.setattr(edgelean.recheck, "read_evidence", lambda *told: pytest.fail("it was read"))
    with pytest.raises(VerificationError, match=r"model\.onnx: is not the file"):
        verify_again(bundle)

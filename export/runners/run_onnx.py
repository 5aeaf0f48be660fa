"""Run an ONNX file of this bundle on samples, or on a signal: needs numpy and onnxruntime, Python 3.8 or newer.

    python run_onnx.py INPUT.npy|IMAGE|FILE.wav [--model model.onnx] [--benchmark]
    python run_onnx.py --stream FILE.npy|FILE.wav [--model model.step.onnx] [--every N] [--hop N] [--gain X]

The first reads one .npy file per input of the model, the samples along the first dimension, or any number of images
or recordings, and prints one line per sample. The second goes through one signal step by step, of any length, and
prints the answer after the last step. The SHA-256 of the model is compared with manifest.json, which lies beside this
script, before anything is run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Optional

sys.dont_write_bytecode = True  # a bundle stays as it was checked
sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I does not look beside the script
try:
    import running
    from samples import RefusedError
except ImportError as error:
    sys.exit("run_onnx.py: {}: pip install numpy, and copy the whole bundle".format(error))


class Session:
    """An onnxruntime session on one thread of the processor, as edgelean measures."""

    words = "1 thread"

    def __init__(self, name: str, bundle: running.Bundle) -> None:
        content, checked = (
            bundle.content(name),
            bundle.manifest.get("versions", {}).get("onnxruntime", "of any version"),
        )
        try:
            import onnxruntime
        except ImportError as error:
            raise RefusedError(
                "onnxruntime cannot be imported ({}): pip install onnxruntime; this bundle was made with "
                "onnxruntime {}".format(error, checked)
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds, which share no base that it exports
            raise RefusedError(
                "onnxruntime {} cannot open {}, which was made with onnxruntime {}: {}".format(
                    onnxruntime.__version__, name, checked, error
                ),
                4,
            ) from None
        self.get_inputs, self.run = self.session.get_inputs, self.session.run


def main(words: Optional[List[str]] = None) -> int:
    """Run the command line ``words``; returns the exit code."""
    return running.main(words, Session, ".onnx", __file__)


if __name__ == "__main__":
    sys.exit(main())

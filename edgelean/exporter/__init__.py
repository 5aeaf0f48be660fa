"""From the lean model to files that leave the machine: ONNX, TensorRT, and the bundle around them."""

from edgelean.exporter.bundle import BundleFacts as BundleFacts
from edgelean.exporter.bundle import check_bundle as check_bundle
from edgelean.exporter.bundle import write_bundle as write_bundle
from edgelean.exporter.fp16 import to_fp16 as to_fp16
from edgelean.exporter.onnx import export_onnx as export_onnx
from edgelean.exporter.steps import find_steps as find_steps
from edgelean.exporter.targets import ExportTarget as ExportTarget
from edgelean.exporter.targets import Tolerances as Tolerances
from edgelean.exporter.targets import load_target as load_target
from edgelean.exporter.targets import target_names as target_names
from edgelean.exporter.tensorrt import EngineNote as EngineNote
from edgelean.exporter.tensorrt import build_engine as build_engine

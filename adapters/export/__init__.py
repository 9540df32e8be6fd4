"""Backbones and adapters as ONNX files, for machines without torch; needs the extra ``onnx``."""

from samgraft.adapters.export.onnx_files import export_adapter, export_backbone
from samgraft.adapters.export.record import LIMIT, OPSET

__all__ = ["LIMIT", "OPSET", "export_adapter", "export_backbone"]

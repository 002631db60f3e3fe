"""From a run to a release: ONNX graphs, INT8, verification."""

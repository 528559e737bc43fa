"""Export: a trained model directory to a sparse ONNX artifact."""

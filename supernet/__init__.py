"""HeatDETR in PyTorch: blocks, supernet, training, extraction and ONNX export."""

"""The agent: times ONNX graphs on the device it runs on."""

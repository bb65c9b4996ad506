"""Engines: building, binding and trusting what TensorRT and TensorRT for RTX compile for a device."""

"""Write graphs for TensorRT, and build engines from them."""

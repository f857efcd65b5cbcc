"""TensorRT: engines built, checked, cached and run."""

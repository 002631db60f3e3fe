"""That a GPU cannot be used."""


class GpuError(RuntimeError):
    """There is no GPU, it cannot be asked, or CUDA or TensorRT fails on it."""

"""TensorRT engines where they are served: on which GPU, whether they belong to it, and how a batch runs.

Copied beside the `tensorrt` backend as `steps` is; so nothing but numpy is imported at the top of any module here.
"""

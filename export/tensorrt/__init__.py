"""TensorRT engines of the encoder: quantised graph, profiles, builder, inspection, measurement.

Nothing here imports TensorRT by itself: whoever builds passes the module in (`load_tensorrt` finds the installed one).
So the same builder runs in tests with `tensorrt_rtx`, which parses, types, profiles and builds without a GPU.
"""

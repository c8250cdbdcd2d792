"""Convert torch modules to ONNX and OpenVINO, in float or int8. Backends and exported files share it.

The modules are imported one by one: `conversion.tracing` loads torch, the others do not.
"""

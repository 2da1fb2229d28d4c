"""Models as files of ONNX, traced from JAX: every family and every output go the same way.

Read in this order: saving (which outputs, the file, its comparison with the model), tracing (a traced function becomes
nodes), operators and functions (which nodes), graph (nodes, constants, names). docs/onnx.md says why no library does.
"""

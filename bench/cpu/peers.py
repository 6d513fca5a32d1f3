"""Products of 2-bit weights from other libraries: what is not importable is named and left out."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Call = Callable[[Tensor], object]
GROUP = 128


def found(rows: int, columns: int, threads: int) -> Iterator[tuple[str, Call | str]]:
    """Name and call of each library, with random weights of this shape; or why there is none."""
    makers = {"OpenVINO u2": _openvino, "ONNX Runtime 2-bit": _onnxruntime}
    for name, make in makers.items():
        try:
            yield name, make(rows, columns, threads)
        except ImportError as error:
            yield name, f"not installed: {error.name}"
        except Exception as error:  # a library's own error says why it has no product here
            yield name, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def _openvino(rows: int, columns: int, threads: int) -> Call:
    """Weights ``(code - 1.5) * scale``, a scale for each row and group, in fp32 arithmetic."""
    import openvino as ov
    from openvino import opset13 as ops

    groups = columns // GROUP
    draw = np.random.default_rng(0)
    packed = draw.integers(0, 256, rows * columns // 4, dtype=np.uint8)
    codes = ov.Tensor(ov.Type.u2, ov.Shape([rows, groups, GROUP]))
    codes.data[:] = packed.reshape(codes.data.shape)
    scale = (draw.random((rows, groups, 1)) * 0.01).astype(np.float16)
    x = ops.parameter([-1, columns], np.float32)
    weight = ops.convert(ops.constant(codes), np.float16)
    weight = ops.multiply(ops.subtract(weight, np.float16(1.5)), scale)
    weight = ops.convert(ops.reshape(weight, [rows, columns], special_zero=False), np.float32)
    model = ov.Model([ops.matmul(x, weight, False, True)], [x])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda values: request.infer([values.numpy()], share_inputs=True)


def _onnxruntime(rows: int, columns: int, threads: int) -> Call:
    """``MatMulNBits`` of 2 bits, activations in 8 bits (accuracy level 4), as it is used."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    groups = columns // GROUP
    codes = draw.integers(0, 256, (rows, groups, GROUP // 4), dtype=np.uint8)
    scale = (draw.random((rows, groups)) * 0.01).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scale"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=2, block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    tensors = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale")]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", size])
        for name, size in (("x", columns), ("y", rows))
    ]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], tensors)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda values: session.run(None, {"x": values.numpy()})


def inputs(count: int, columns: int) -> Tensor:
    """Activations ``f32[count, columns]``."""
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count))

"""The usual recipe: optimum-onnx exports, optimizes at O2, and quantizes dynamically for AVX-512 VNNI.

Run by the Python of an environment that holds optimum-onnx and nothing of paritybit:

    python optimum_recipe.py CHECKPOINT OUTPUT

writes `fp32.onnx`, `o2.onnx` and `int8.onnx` into OUTPUT.
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer, ORTQuantizer
from optimum.onnxruntime import quantization as optimum_quantization
from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig


def main(checkpoint: str, output: str) -> None:
    """Writes the three graphs."""
    made = Path(output)
    made.mkdir(parents=True, exist_ok=True)
    # O2 leaves tensors without a type, at which the quantizer of this ONNX Runtime gives up unless told one
    quantizer = optimum_quantization.ONNXQuantizer
    optimum_quantization.ONNXQuantizer = partial(_with_default_type, quantizer)
    with tempfile.TemporaryDirectory() as place:
        exported, optimized, quantized = (Path(place) / name for name in ("exported", "optimized", "quantized"))
        model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
        model.save_pretrained(exported)
        shutil.copyfile(exported / "model.onnx", made / "fp32.onnx")
        ORTOptimizer.from_pretrained(exported).optimize(
            optimization_config=AutoOptimizationConfig.O2(), save_dir=optimized
        )
        shutil.copyfile(optimized / "model_optimized.onnx", made / "o2.onnx")
        ORTQuantizer.from_pretrained(optimized, file_name="model_optimized.onnx").quantize(
            save_dir=quantized,
            quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False),
        )
        shutil.copyfile(quantized / "model_optimized_quantized.onnx", made / "int8.onnx")


def _with_default_type(
    quantizer: Any, *arguments: Any, extra_options: Mapping[str, Any] | None = None, **others: Any
) -> Any:
    options = {**(extra_options or {}), "DefaultTensorType": onnx.TensorProto.FLOAT}
    return quantizer(*arguments, extra_options=options, **others)


if __name__ == "__main__":
    main(*sys.argv[1:])

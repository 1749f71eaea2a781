"""OpenVINO with NNCF: post-training int8 of a float ONNX graph, calibrated on given batches.

Run by the Python of an environment that holds openvino and nncf and nothing of paritybit:

    python openvino_recipe.py FP32.onnx CALIBRATION.npz OUTPUT.xml

CALIBRATION.npz holds `<row>/<input>` arrays, int64, shape `[1, tokens]`.
"""

import sys
from collections import defaultdict

import nncf
import numpy as np
import openvino


def main(fp32: str, calibration: str, output: str) -> None:
    """Writes the quantized graph as OpenVINO's own format."""
    model = openvino.Core().read_model(fp32)
    names = {port.get_any_name() for port in model.inputs}
    rows: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(calibration) as arrays:
        for key in arrays.files:
            row, name = key.split("/")
            if name in names:
                rows[row][name] = arrays[key]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(rows.values())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(rows),
    )
    openvino.save_model(quantized, output, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

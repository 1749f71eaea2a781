"""The Open Inference Protocol v2, which KServe and Triton speak: texts come and answers go as named tensors.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol describes it, and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md its extension for
tensors as bytes behind the JSON, in which `tritonclient` sends texts unless it is told otherwise.

One rule for all tasks. An input tensor is a field of the task's usual input: BYTES of shape [n] or [n, 1], for n
inputs. An output tensor has shape [n]: `json` holds each input's whole answer, as `POST /predict` gives it; and what
every answer of a task has exactly one of is a tensor of its own: the best `label`, the best `answer`, its `score`.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bundle.manifest import Manifest
from serve.http import parse_request
from tasks import Answer, Input, Task, TextInput
from tasks.errors import InputError
from tasks.inputs import input_from_json

__all__ = [
    "EXTENSIONS",
    "Asked",
    "InferRequest",
    "InferResponse",
    "example_request",
    "model_metadata",
    "read_infer_request",
    "write_infer_response",
]

EXTENSIONS = ["binary_tensor_data"]
_LENGTH = struct.Struct("<I")

Json = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class InputParameters(_Strict):
    """Of an input tensor."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Bytes of the tensor behind the JSON, where it has no `data`."
    )


class RequestInput(_Strict):
    """An input tensor: a field of the task's input, for each of n inputs."""

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(description="[n] or [n, 1].")
    datatype: Literal["BYTES"]
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(default=None, description="n texts, flat or each in a list of its own.")


class OutputParameters(_Strict):
    """Of an output tensor that is asked for."""

    binary_data: bool | None = Field(default=None, description="Whether it comes as bytes behind the JSON.")


class RequestOutput(_Strict):
    """An output tensor that is asked for."""

    name: str
    parameters: OutputParameters | None = None


class InferRequest(_Strict):
    """Body of `POST /v2/models/{name}/infer`."""

    id: str | None = Field(default=None, description="Comes back with the answer.")
    parameters: dict[str, JsonValue] | None = Field(
        default=None, description="The task's parameters; `binary_data_output` asks for all outputs as bytes."
    )
    inputs: list[RequestInput] = Field(min_length=1)
    outputs: list[RequestOutput] | None = Field(default=None, description="All of them when missing.")


class ResponseOutput(_Strict):
    """An output tensor: one value for each input."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: tuple[int]
    parameters: dict[str, int] | None = Field(default=None, description="`binary_data_size`, in place of `data`.")
    data: list[str] | list[float] | None = None


class InferResponse(_Strict):
    """Answer of `POST /v2/models/{name}/infer`."""

    model_name: str
    id: str | None = None
    outputs: list[ResponseOutput]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the protocol, read.

    Attributes:
        id: what the caller calls it.
        inputs: in order.
        given: the task's parameters.
        outputs: the tensors to answer with, and whether each goes as bytes.
    """

    id: str | None
    inputs: list[Input]
    given: dict[str, Any]
    outputs: dict[str, bool]


@dataclass(frozen=True, slots=True)
class _Output:
    datatype: Literal["BYTES", "FP32"]
    of: Callable[[Answer], Any]


_WHOLE = _Output("BYTES", lambda answer: json.dumps(answer, ensure_ascii=False, separators=(",", ":")))
_OF_TASK: dict[str, dict[str, _Output]] = {
    "single_label": {
        "label": _Output("BYTES", lambda answer: answer["labels"][0]["label"]),
        "score": _Output("FP32", lambda answer: answer["labels"][0]["score"]),
    },
    # any number of labels, and of entities: none is the one
    "multi_label": {},
    "token_classification": {},
    "regression": {"score": _Output("FP32", lambda answer: answer["score"])},
    "question_answering": {
        "answer": _Output("BYTES", lambda answer: answer["answers"][0]["answer"]),
        "score": _Output("FP32", lambda answer: answer["answers"][0]["score"]),
    },
}


def model_metadata(manifest: Manifest, task: Task) -> Json:
    """What `GET /v2/models/{name}` says: the tensors, each of a shape whose one axis is the number of inputs."""
    inputs = dict.fromkeys(_fields(task), "BYTES")
    outputs = {name: output.datatype for name, output in _outputs(task).items()}
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(name, datatype) for name, datatype in inputs.items()],
        "outputs": [_tensor(name, datatype) for name, datatype in outputs.items()],
    }


def read_infer_request(body: bytes, header_length: str | None, task: Task) -> Asked:
    """A request's inputs, parameters and wishes.

    Args:
        body: JSON, and behind it the tensors that come as bytes.
        header_length: the header `Inference-Header-Content-Length`: bytes of the JSON; all of the body when None.
        task: that answers.

    Raises:
        InputError: with the place: `inputs[0].data[3]: expected a text`.
    """
    header, tail = _split(body, header_length)
    request = parse_request(header, InferRequest)
    columns = _read_columns(request.inputs, tail, task)
    given = {name: value for name, value in (request.parameters or {}).items() if value is not None}
    binary = given.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InputError("parameters.binary_data_output: expected true or false")
    return Asked(request.id, _read_rows(columns, task), given, _wishes(request.outputs, binary, task))


def write_infer_response(asked: Asked, answers: Sequence[Answer], name: str, task: Task) -> tuple[bytes, int | None]:
    """The body of the answer.

    Args:
        asked: the request.
        answers: one per input, in order.
        name: of the model.
        task: that has answered.

    Returns:
        The body, and how many bytes of it are JSON; None when all are.
    """
    outputs: list[Json] = []
    tail = b""
    for output_name, binary in asked.outputs.items():
        output = _outputs(task)[output_name]
        values = [output.of(answer) for answer in answers]
        tensor = {"name": output_name, "datatype": output.datatype, "shape": [len(values)]}
        if binary:
            content = _packed(values, output.datatype)
            tail += content
            outputs.append(tensor | {"parameters": {"binary_data_size": len(content)}})
        else:
            outputs.append(tensor | {"data": values})
    response = {"model_name": name} | ({} if asked.id is None else {"id": asked.id}) | {"outputs": outputs}
    header = json.dumps(response, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return header + tail, len(header) if any(asked.outputs.values()) else None


def example_request(one: Input, parameters: Json, task: Task) -> Json:
    """A request that asks for one input; words are asked for as their text."""
    if not isinstance(one, task.input_types[0]):
        one = TextInput(task.texts(one)[0])
    values = {name: getattr(one, name) for name in _fields(task)}
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}
        for name, value in values.items()
        if value is not None
    ]
    return {"id": "1", "parameters": parameters, "inputs": inputs}


def _fields(task: Task) -> dict[str, bool]:
    """Fields of the task's usual input by name, and whether each is required."""
    return {one.name: one.default is MISSING for one in fields(task.input_types[0])}


def _outputs(task: Task) -> dict[str, _Output]:
    return {**_OF_TASK[task.name], "json": _WHOLE}


def _tensor(name: str, datatype: str) -> Json:
    return {"name": name, "datatype": datatype, "shape": [-1]}


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    length = int(header_length) if re.fullmatch(r"[0-9]{1,10}", header_length, re.ASCII) else len(body) + 1
    if length > len(body):
        raise InputError(
            "header Inference-Header-Content-Length: expected how many of the body's "
            f"{len(body)} bytes are JSON, got {header_length[:40]!r}"
        )
    return body[:length], body[length:]


def _read_columns(inputs: Sequence[RequestInput], tail: bytes, task: Task) -> dict[str, list[str]]:
    """The texts of each tensor by its name, in the request's order; all are of one length."""
    known = _fields(task)
    columns: dict[str, list[str]] = {}
    for number, tensor in enumerate(inputs):
        place = f"inputs[{number}]"
        if tensor.name not in known:
            raise InputError(f"{place}.name: expected {' or '.join(known)}, got {tensor.name[:40]!r}")
        if tensor.name in columns:
            raise InputError(f"{place}.name: {tensor.name} was given before")
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        content, tail = tail[: size or 0], tail[size or 0 :]
        columns[tensor.name] = _read_column(tensor, content, place)
    if tail:
        raise InputError(f"{len(tail)} bytes behind the JSON belong to no input")
    for name, required in known.items():
        if required and name not in columns:
            raise InputError(f"inputs: {name} is missing")
    counts = {name: len(texts) for name, texts in columns.items()}
    if len(set(counts.values())) > 1:
        raise InputError("inputs: not of one length: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    return columns


def _read_column(tensor: RequestInput, content: bytes, place: str) -> list[str]:
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        raise InputError(f"{place}.shape: expected [n] or [n, 1]")
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if (size is None) == (tensor.data is None):
        raise InputError(f"{place}: expected either data or parameters.binary_data_size")
    if size is not None:
        if len(content) < size:
            raise InputError(f"{place}.parameters.binary_data_size: only {len(content)} bytes are left behind the JSON")
        texts = _unpacked(content, place)
    else:
        texts = _texts(tensor.data or [], nested=len(shape) == 2, place=place)
    if len(texts) != shape[0]:
        raise InputError(f"{place}.shape: its first axis is not {len(texts)}, the number of texts in the data")
    return texts


def _texts(data: Sequence[Any], *, nested: bool, place: str) -> list[str]:
    flat = [one[0] if nested and isinstance(one, list) and len(one) == 1 else one for one in data]
    for number, one in enumerate(flat):
        if not isinstance(one, str):
            raise InputError(f"{place}.data[{number}]: expected a text")
    return flat


def _unpacked(content: bytes, place: str) -> list[str]:
    """Texts, each behind the number of its bytes: an unsigned number of four bytes, the lowest first."""
    texts: list[str] = []
    at = 0
    while at < len(content):
        begin = at + _LENGTH.size
        # of a length that is cut off itself, what is there is not even read
        at = begin + _LENGTH.unpack_from(content, at)[0] if begin <= len(content) else begin
        if at > len(content):
            raise InputError(f"{place}.data[{len(texts)}]: its bytes end too early")
        try:
            texts.append(content[begin:at].decode())
        except UnicodeDecodeError:
            raise InputError(f"{place}.data[{len(texts)}]: not UTF-8") from None
    return texts


def _packed(values: Sequence[Any], datatype: str) -> bytes:
    if datatype == "FP32":
        return np.array(values, dtype="<f4").tobytes()
    texts = [value.encode() for value in values]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _read_rows(columns: dict[str, list[str]], task: Task) -> list[Input]:
    kinds = task.input_types[:1]
    rows: list[Input] = []
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        try:
            rows.append(input_from_json(dict(zip(columns, row, strict=True)), kinds))
        except InputError as error:
            name, _, reason = str(error).partition(": ")
            raise InputError(f"inputs[{list(columns).index(name)}].data[{number}]: {reason}") from None
    return rows


def _wishes(asked: Sequence[RequestOutput] | None, binary: bool, task: Task) -> dict[str, bool]:
    known = _outputs(task)
    wishes: dict[str, bool] = {}
    for number, output in enumerate(asked or ()):
        if output.name not in known:
            raise InputError(f"outputs[{number}].name: expected {' or '.join(known)}, got {output.name[:40]!r}")
        own = output.parameters.binary_data if output.parameters else None
        wishes[output.name] = binary if own is None else own
    return wishes or dict.fromkeys(known, binary)

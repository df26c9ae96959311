"""The messages of the Open Inference Protocol v2 over gRPC, by the field numbers of its public definition.

They live in a pool of their own: a process may hold a client's generated classes of the same names beside
them. What is not listed here protobuf passes over.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_TENSOR = "string name, string datatype, *int64 shape"
#: Message → its fields in the order of their numbers, from 1: `type name`, `*` for a repeated one;
#: `parameters` alone is the map from text to `InferParameter`.
_FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, *string extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse": "string name, *string versions, string platform, *.TensorMetadata inputs,"
    " *.TensorMetadata outputs",
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": "bool bool_param, int64 int64_param, string string_param, double double_param,"
    " uint64 uint64_param",
    "InferTensorContents": "*bool bool_contents, *int32 int_contents, *int64 int64_contents,"
    " *uint32 uint_contents, *uint64 uint64_contents, *float fp32_contents, *double fp64_contents,"
    " *bytes bytes_contents",
    "ModelInferRequest": "string model_name, string model_version, string id, parameters,"
    " *.InferInputTensor inputs, *.InferRequestedOutputTensor outputs, *bytes raw_input_contents",
    "ModelInferRequest.InferInputTensor": f"{_TENSOR}, parameters, InferTensorContents contents",
    "ModelInferRequest.InferRequestedOutputTensor": "string name, parameters",
    "ModelInferResponse": "string model_name, string model_version, string id, parameters,"
    " *.InferOutputTensor outputs, *bytes raw_output_contents",
    "ModelInferResponse.InferOutputTensor": f"{_TENSOR}, parameters, InferTensorContents contents",
}
#: The one message of which a single field is set.
_ONE_OF = ("InferParameter", "parameter_choice")


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name, fields in _FIELDS.items():
        outer, _, inner = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        for number, field in enumerate(filter(None, fields.split(", ")), start=1):
            _add(made[name], name, field, number)
    message, choice = _ONE_OF
    made[message].oneof_decl.add(name=choice)
    for one in made[message].field:
        one.oneof_index = 0
    return file


def _add(message: DescriptorProto, message_name: str, field: str, number: int) -> None:
    if field == "parameters":
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add(entry, "", "string key", 1)
        _add(entry, "", "InferParameter value", 2)
        field = "*.ParametersEntry parameters"
    repeated, (kind, name) = field.startswith("*"), field.removeprefix("*").split()
    added = message.field.add(name=name, number=number)
    added.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    if kind in ("bool", "string", "bytes", "float", "double", "int32", "int64", "uint32", "uint64"):
        added.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    else:
        added.type = FieldDescriptorProto.TYPE_MESSAGE
        added.type_name = f".{PACKAGE}.{message_name if kind.startswith('.') else ''}{kind}"


_pool = DescriptorPool()
_pool.Add(_file())


def message(name: str) -> Any:
    """The class of a message.

    >>> message("ServerLiveResponse")(live=True).SerializeToString()
    b'\\x08\\x01'
    """
    return GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))

"""What runs a graph: ONNX Runtime, OpenVINO, TensorRT through ONNX Runtime, PyTorch. Each is imported at use."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionocc_core.export.artefact import Artefact
from fusionocc_core.export.torch_runtime import TorchExportRuntime

_logger = logging.getLogger(__name__)

RUNTIMES_OF = {
    "onnx": ("onnx", "openvino"),
    "openvino": ("openvino",),
    "torch-export": ("torch-export",),
    "tensorrt": ("tensorrt", "onnx"),
}
"""What an artefact was exported to, and what can run it; the first one does unless told otherwise."""

RUNTIMES = ("auto", "torch", "torch-compile", "onnx", "openvino", "torch-export", "tensorrt")
"""What a user may ask for; "torch" and "torch-compile" run the network itself, not an artefact."""

NEEDS = {"onnx": "onnxruntime", "tensorrt": "onnxruntime", "openvino": "openvino"}


class Runtime(Protocol):
    """Runs one graph."""

    name: str
    """For tables: program, version, device."""
    computes_in: str
    """What it really computes in, which is for the processor to decide: how many convolutions and matrix products in
    which precision; of runtimes that do not tell, the artefact's."""

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[NDArray[np.uint8]]:
        """Inputs in the graph's order to its outputs."""


def open_runtime(artefact: Artefact, runtime: str = "auto", *, threads: int | None = None) -> Runtime:
    """Load an artefact's graph.

    Args:
        artefact: as read_artefact gives it.
        runtime: one of RUNTIMES; "auto" is what the artefact was exported to.
        threads: of the CPU; None: as many as PyTorch uses.

    Raises:
        ValueError: the artefact cannot be run by that.
        ModuleNotFoundError: it is not installed.
    """
    possible = RUNTIMES_OF[artefact.target]
    chosen = possible[0] if runtime == "auto" else runtime
    if chosen not in RUNTIMES:
        raise ValueError(f"runtime {runtime}: expected one of {', '.join(RUNTIMES)}")
    if chosen not in possible:
        weights = chosen in ("torch", "torch-compile")
        hint = "load the weights that it was made from" if weights else f"export with --to {chosen}"
        raise ValueError(
            f"runtime {runtime}: {artefact.folder} was exported to {artefact.target} and can be run by "
            f"{' or '.join(possible)}; for {runtime} {hint}"
        )
    require(chosen)
    make: dict[str, Callable[[Artefact, int], Runtime]] = {
        "onnx": OnnxRuntime,
        "tensorrt": tensorrt_runtime,
        "openvino": OpenVinoRuntime,
        "torch-export": TorchExportRuntime,
    }
    return make[chosen](artefact, threads or torch.get_num_threads())


def require(target: str, *packages: str) -> None:
    """Check that what a target needs is installed.

    Raises:
        ModuleNotFoundError: it is not.
    """
    for package in (*([NEEDS[target]] if target in NEEDS else []), *packages):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"{target}: {package} is not installed: pip install 'fusionocc_ros[export]'")


class OnnxRuntime:
    """ONNX Runtime, on CUDA where its build has it, else on the CPU."""

    def __init__(self, artefact: Artefact, threads: int, providers: Sequence[str] | None = None) -> None:
        ort = import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait sleep: on a machine with other work spinning costs more than waking up.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if providers is None:
            providers = [p for p in ("CUDAExecutionProvider",) if p in ort.get_available_providers()]
        self._session = ort.InferenceSession(
            str(artefact.graph), options, providers=[*providers, "CPUExecutionProvider"]
        )
        self._names = [spec.name for spec in artefact.inputs]
        first = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.name = f"ONNX Runtime {ort.__version__} {first}"
        self.computes_in = "int8 and fp32" if artefact.precision == "int8" else "fp32"

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[NDArray[np.uint8]]:
        """See Runtime."""
        inputs = {name: array_of(tensor) for name, tensor in zip(self._names, tensors, strict=True)}
        outputs: Sequence[NDArray[np.uint8]] = self._session.run(None, inputs)
        return outputs


def tensorrt_runtime(artefact: Artefact, threads: int) -> OnnxRuntime:
    """TensorRT inside ONNX Runtime.

    Raises:
        ValueError: this build of ONNX Runtime has no TensorRT.
    """
    provider = "TensorrtExecutionProvider"
    available = import_module("onnxruntime").get_available_providers()
    if provider not in available:
        raise ValueError(
            f"runtime tensorrt: this ONNX Runtime has no TensorRT (it has {', '.join(available)}); build the engine "
            f"with {artefact.folder}/trtexec.sh, install onnxruntime-gpu and TensorRT, or run the same graph with "
            "runtime onnx"
        )
    return OnnxRuntime(artefact, threads, providers=[provider, "CUDAExecutionProvider"])


class OpenVinoRuntime:
    """OpenVINO on the CPU."""

    def __init__(self, artefact: Artefact, threads: int) -> None:
        openvino = import_module("openvino")
        core = openvino.Core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint_for(
                artefact.precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            ),
        }
        compiled = core.compile_model(str(artefact.graph), "CPU", settings)
        self._request = compiled.create_infer_request()
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]} CPU"
        self.computes_in = precisions_of(compiled.get_runtime_model())
        if artefact.precision not in self.computes_in.replace(",", "").split():
            _logger.warning(
                "%s: exported for %s, which this processor does not have; OpenVINO computes in %s",
                artefact.folder,
                artefact.precision,
                self.computes_in,
            )

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[NDArray[np.uint8]]:
        """See Runtime."""
        outputs = self._request.infer([array_of(tensor) for tensor in tensors], share_inputs=True)
        return [np.asarray(outputs[k]) for k in range(len(outputs))]


HEAVY = ("Convolution", "FullyConnected", "MatMul")
"""Where a network's time goes, by OpenVINO's names."""

OPENVINO_NAMES = {"f32": "fp32", "f16": "fp16", "i8": "int8"}
"""Of precisions that we call otherwise."""


def precisions_of(runtime_model: Any) -> str:
    """What OpenVINO computes the convolutions and matrix products of a compiled model in: "bf16 46, fp32 2"."""
    counts: Counter[str] = Counter()
    for operation in runtime_model.get_ops():
        about = operation.get_rt_info()
        if about["layerType"].astype(str) in HEAVY:
            # The kernel's name tells, such as "brgconv_avx512_bf16"; "runtimePrecision" may be that of stored weights.
            name = about["primitiveType"].astype(str).lower().rsplit("_", 1)[-1]
            counts[OPENVINO_NAMES.get(name, name)] += 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "bf16"}
"""OpenVINO shall compute in this whatever is not quantised."""

CAPABILITIES = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
"""OpenVINO's names of what a processor can."""


def hint_for(precision: str, capabilities: Sequence[str]) -> str:
    """What OpenVINO is told to compute in: what was asked for where the processor has it, else fp32.

    Left alone it takes bf16 for fp16, which has an eighth of its digits, and on processors without bf16 computes that
    by way of fp32, or not at all.

    Args:
        precision: of the artefact.
        capabilities: of the processor, as OpenVINO names them ("FP32", "BF16", ...).
    """
    hint = HINTS[precision]
    return hint if CAPABILITIES[hint] in capabilities else "f32"


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The tensor as an array in C order, on the CPU."""
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return array


def versions(*packages: str) -> dict[str, str]:
    """Of packages that are installed, and of PyTorch."""
    return {"torch": torch.__version__, **{name: str(import_module(name).__version__) for name in packages}}

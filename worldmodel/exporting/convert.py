"""ONNX files of the graphs, and the manifest that describes them."""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

import worldmodel
from worldmodel.errors import ConfigError
from worldmodel.exporting.graphs import Graph, graphs_of, leaves, trunk_graph
from worldmodel.world import WorldModel

FORMAT = 1  # of the manifest; a reader refuses another number
OPSET = 20
ROWS = "batch"  # in place of a size in the manifest: any number of rows


def write_graphs(world: WorldModel, folder: Path, rows: int | None = None) -> dict[str, Any]:
    """Write encoder.onnx, decoder.onnx and prior.onnx, for ``rows`` rows (None: for any number); returns the manifest.

    Raises :class:`ConfigError`, which names the part that cannot be exported.
    """
    graphs = graphs_of(world)
    for graph in graphs:
        try:
            convert(graph, folder / f"{graph.name}.onnx", rows)
        except Exception as error:
            part = graph.part
            if graph.name == "prior" and not _exports(trunk_graph(world.prior)):
                part = trunk_graph(world.prior).part
            fault = f"the {part} cannot be exported ({_reason(error)})"
            remedy = "choose tokenizer=vqvae and prior=conv, conv_pose or transformer, which can"
            raise ConfigError(f"{fault}; {remedy}") from error
    return manifest(world, [folder / f"{graph.name}.onnx" for graph in graphs])


def convert(graph: Graph, path: Path, rows: int | None) -> None:
    """Write one graph, for ``rows`` rows; None: for any number of rows, if its modules allow that, and else for one.

    ONNX Runtime computes what is constant, which takes a second; the optimiser of onnxscript takes half a minute.
    """
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        program, raw = _program(graph, rows), Path(folder) / path.name
        names: dict[str, Any] = {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
        plain: dict[str, Any] = {"optimize": False, "external_data": False, "verbose": False}
        file = torch.onnx.export(program, opset_version=OPSET, **plain, **names)
        assert file is not None
        file.save(raw)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    kept = [domain for domain in model.opset_import if domain.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, path)


def _program(graph: Graph, rows: int | None) -> torch.export.ExportedProgram:
    """The operations of a graph."""
    if rows is None:
        try:
            return _traced(graph, torch.export.Dim("batch"), tuple(graph.inputs.values()))
        except Exception:
            rows = 1
    return _traced(graph, None, tuple(tensor[:rows] if tensor.dim() else tensor for tensor in graph.inputs.values()))


def _traced(graph: Graph, batch: Any, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    shapes: Any = tuple({0: batch} if batch is not None and tensor.dim() else None for tensor in inputs)
    # A module of several inputs takes them as one tuple.
    return torch.export.export(graph.module, inputs, dynamic_shapes=shapes if len(shapes) == 1 else (shapes,))


def manifest(world: WorldModel, files: Sequence[Path]) -> dict[str, Any]:
    """What a program has to know to run the graphs; JSON. docs/export.md describes it."""
    spec, prior = world.spec, world.prior
    state = [
        {"input": name, "output": f"next.{name}", "initial": _initial(name, tensor)}
        for name, tensor in leaves(prior.trunk.begin(1), "trunk").items()
    ]
    return {
        "format": FORMAT,
        "made_by": f"worldmodel {worldmodel.__version__}, torch {torch.__version__}",
        "environment": spec.env_id,
        "rate": spec.rate,
        "frame": list(spec.frame_shape),
        "grid": list(prior.grid),
        "num_codes": prior.num_codes,
        "action_names": list(spec.action_names),
        "context": max(1, prior.context),
        "graphs": {file.stem: _signature(file) for file in files},
        "state": [*state, {"input": "previous", "output": "codes", "initial": -1}],
    }


def _signature(path: Path) -> dict[str, Any]:
    """Names, types and shapes of what a file takes and gives."""
    model = onnx.load(path, load_external_data=False)

    def described(values: Any) -> list[dict[str, Any]]:
        found = []
        for value in values:
            tensor = value.type.tensor_type
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            shape = [ROWS if size.dim_param else size.dim_value for size in tensor.shape.dim]
            found.append({"name": value.name, "type": kind, "shape": shape})
        return found

    return {"file": path.name, "inputs": described(model.graph.input), "outputs": described(model.graph.output)}


def _initial(name: str, tensor: Tensor) -> float:
    """The value that all numbers of a part of the first state have."""
    first = tensor.flatten()[0]
    if not bool((tensor == first).all()):
        raise ConfigError(f"the trunk cannot be exported: its first state {name} is not one number everywhere")
    return first.item() if tensor.is_floating_point() else int(first)


def _exports(graph: Graph) -> bool:
    try:
        with _quiet():
            _program(graph, 1)
    except Exception:
        return False
    return True


def _reason(error: BaseException) -> str:
    """The first cause in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on libraries that are not installed. The gradients stay enabled, without which a
    head would look up products of its weights that are larger than the weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

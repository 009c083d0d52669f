"""(d) Inference latency of final networks against uniformly narrower ones, and Torch-Pruning's, of equal MACs."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical.baselines import uniform_keep
from apical.export import export_onnx
from apical.timing._clock import synchronise
from benchmarks.seconds.findings import Findings, NotAvailableError
from benchmarks.seconds.spread import of, ratio, take_turns
from benchmarks.seconds.steps import Growth, Options, recorded, simulated

RECIPES = {
    "cifar10-resnet20": ("50% macs", ("eager", "compile", "onnx")),
    "cifar10-vgg16": ("13.6% macs, 5% params", ("eager", "compile", "onnx")),
    "cifar10-wrn28-10": ("28.3% macs", ("eager",)),
}
"""Budget, and the ways to run the network."""
BATCHES = (1, 128)
MAX_RATIO = 1.0  # never slower than uniform scaling of equal MACs
COLUMNS = [("network", ""), ("run by", ""), ("batch", "d"), ("final ms", ".3f"), ("uniform ms", ".3f"),
           ("final / uniform", ".3f"), ("Torch-Pruning ms", ".3f"), ("final / Torch-Pruning", ".3f")]  # fmt: skip


def latency(options: Options, found: Findings) -> None:
    """The final networks of the simulated growths, and of the given runs."""
    rows: list[tuple[Any, ...]] = []
    sizes: list[tuple[Any, ...]] = []
    for recipe, (budget, ways) in () if options.only_runs else RECIPES.items():
        with found.part(recipe):
            growth = simulated(recipe, [f"budget={budget}"], 4 if options.quick else 12)
            _one(growth, ways, options, found, rows, sizes)
    for folder in options.runs:
        with found.part(folder.name):
            _one(recorded(folder, []), ("eager", "compile", "onnx"), options, found, rows, sizes)
    found.table("Median milliseconds of one call, float32", COLUMNS, rows)
    note = (
        "Weights are random: only shapes matter here. Torch-Pruning ranks channels by the norms of random weights: its "
        "widths are those of an untrained network. So are the final ones, unless --run gives a trained run: scores "
        "that were never trained leave every group at about the same fraction."
    )
    headings = [("network", ""), ("kind", ""), ("million MACs", ".2f"), ("million parameters", ".3f")]
    found.table("Networks", headings, sizes, note)


def _one(
    growth: Growth, ways: tuple[str, ...], options: Options, found: Findings, rows: list[Any], sizes: list[Any]
) -> None:
    structure, record = growth.structure, growth.records[-1]
    uniform = uniform_keep(structure, f"{record['macs']} macs", growth.config.growth.divisor)
    networks = {"final": growth.at(len(growth.records) - 1), "uniform": growth.network(uniform)}
    macs = {"final": record["macs"], "uniform": structure.macs(uniform)}
    if "onnx" in ways:
        with found.part(f"Torch-Pruning, {growth.name}"):
            networks["peer"] = torch_pruned(growth, record["macs"] / structure.macs(), options)
            macs["peer"] = _counted(networks["peer"], growth.shape)
    for kind, network in networks.items():
        network.to(options.device).eval()
        params = sum(p.numel() for p in network.parameters())
        sizes.append((growth.name, kind.replace("peer", "Torch-Pruning"), macs[kind] / 1e6, params / 1e6))
    for way in ways:
        for batch in ((1,) if way == "compile" else (1, 4)) if options.quick else BATCHES:
            with found.part(f"{growth.name}, {way}, batch {batch}"):
                _measure(growth, networks, way, batch, options, found, rows)


def _measure(
    growth: Growth, networks: Mapping[str, nn.Module], way: str, batch: int, options: Options, found: Findings,
    rows: list[Any],
) -> None:  # fmt: skip
    inputs = torch.randn(batch, *growth.shape, generator=torch.Generator().manual_seed(0)).to(options.device)
    timed = {kind: net for kind, net in networks.items() if kind != "peer" or way != "compile"}  # compiling is slow
    calls = {kind: WAYS[way](network, inputs) for kind, network in timed.items()}
    rounds = take_turns(calls, options.seconds(4), least=options.rounds(3), most=options.rounds(40))
    over = ratio(rounds, "final", "uniform")
    peer = [of(rounds, "peer"), ratio(rounds, "final", "peer")] if "peer" in calls else [None, None]
    rows.append((growth.name, way, batch, of(rounds, "final"), of(rounds, "uniform"), over, *peer))
    found.target(f"final / uniform, {growth.name}, {way}, batch {batch}", over, MAX_RATIO)


def _eager(network: nn.Module, inputs: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def call() -> None:
        network(inputs)
        synchronise(inputs.device)

    return call


def _compiled(network: nn.Module, inputs: Tensor) -> Callable[[], None]:
    torch.compiler.reset()  # what was compiled before keeps working through the call that holds it
    compiled = torch.compile(copy.deepcopy(network), dynamic=False)

    @torch.no_grad()
    def call() -> None:
        compiled(inputs)
        synchronise(inputs.device)

    call()
    return call


def _onnx(network: nn.Module, inputs: Tensor) -> Callable[[], None]:
    if inputs.device.type != "cpu":
        raise NotAvailableError(f"onnxruntime is timed on the CPU only, the others run on {inputs.device}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise NotAvailableError("onnxruntime is not installed; pip install '.[export]'")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(copy.deepcopy(network).cpu(), inputs[:1].cpu(), path)
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.cpu().numpy()}
    return lambda: session.run(None, feed)


WAYS: dict[str, Callable[[nn.Module, Tensor], Callable[[], object]]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnx": _onnx,
}
"""What makes a call of a network on its inputs."""


def torch_pruned(growth: Growth, share: float, options: Options) -> nn.Module:
    """Torch-Pruning's network of this share of the MACs, without training.

    Raises:
        NotAvailableError: the package is not installed.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise NotAvailableError("torch-pruning is not installed; pip install '.[bench]'")
    from benchmarks.torch_pruning_peer import TorchPruning, TorchPruningConfig

    model = growth.dense()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = TorchPruningConfig(steps=20 if options.quick else 200)
    example = (torch.zeros(1, *growth.shape),)
    peer = TorchPruning(model, optimizer, example, f"{100 * share:.6f}% macs", 2, config)
    peer.end_epoch()
    peer.finish()
    return model


def _counted(model: nn.Module, shape: tuple[int, ...]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.cpu().eval()(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2

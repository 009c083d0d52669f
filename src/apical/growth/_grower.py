"""The Grower: growth and pruning of a user's model while the user's own loop trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from apical._checks import as_path, changed_since, shown
from apical.budget import BoundBudget, Budget, LatencyTable
from apical.budget._budget import BIT_KINDS, Kind
from apical.budget._rounding import warn_of_idle_divisor
from apical.errors import CheckpointError, ConfigError, DataError
from apical.growth._bits import BitConfig, BitGrowth, model_bytes, refuse_impossible_size
from apical.growth._checks import (
    refuse_inference,
    refuse_without_values,
    warn_of_another_optimizer,
    warn_of_channels_last,
    warn_of_more_epochs,
    warn_of_replaced,
    warn_of_trained,
    warn_of_unfinished,
    warn_of_untrained,
)
from apical.growth._components import Components, checked
from apical.growth._config import GrowthConfig
from apical.growth._growing_model import GrowingModel
from apical.growth._method import Method, terms_of
from apical.growth._options import changed
from apical.growth._plan import Plan, method_of, plan_of
from apical.growth._record import (
    Changes,
    EpochRecord,
    add_changes,
    checked_metrics,
    epoch_record,
    no_changes,
    run_record,
    shown_as_html,
    shown_in_words,
)
from apical.growth._restructuring import Restructuring
from apical.growth._saved import check_identity, identity, refuse_early_optimizer_state
from apical.growth._schedule import adopted_divisor, choose_divisor, with_times
from apical.growth._scs import ScsConfig
from apical.quantize import QuantizedTensor
from apical.reporting import write_report
from apical.resizing import DormantStore, Shard, resize_state, trace
from apical.resizing._guards import SHRUNK, refuse_shrunk
from apical.resizing._optimizer import check_kinds
from apical.resizing._smaller_runs import check_smaller_runs
from apical.resizing._undisturbed import undisturbed
from apical.structure import Call, ExampleInputs, Structure
from apical.timing._latency_table import table_for

WIDTH_KINDS: tuple[Kind, ...] = ("macs", "params", "latency")


class Grower:
    """Grows a model under a budget while it trains: seed, restructure after every epoch, end at the budget.

    At once, the model shrinks in place to a small seed. After each epoch, units and blocks are born, die or come back
    according to their scores and the schedule; the model stays the user's own module, with smaller tensors.

    Args:
        model: the largest network that you would accept, unwrapped.
        optimizer: its optimizer (or several), made from ``model.parameters()`` before. Make a learning-rate
            scheduler as usual; do not keep references to single parameters.
        example_inputs: arguments of one call, on the model's device: a tensor, a tuple, or a dict of keyword arguments;
            MACs and latency are priced at this call.
        budget: what the final network may cost, ``"50% macs"`` or an `apical.Budget`.
        epochs: how many times `end_epoch` will be called in all.
        config: all options of growth; ``options`` override single ones.
        steps_per_epoch: optimizer steps of an epoch, if the loop calls `end_step` after each. The network can then
            change within an epoch, which short trainings need to learn much.
        copies: moving averages or other copies of the model, resized with it.
        structure: of this model, from `apical.trace` or `apical.load_structure`, to save tracing again.
        shard: divides the model among processes: ``fully_shard`` (FSDP2), or a function that calls it on parts of the
            model and then on the model. It is called now, and after every restructuring, in all processes alike; until
            now the model is plain, and the same in all of them.
        bits: how bits are grown, where the budget limits size or bit operations; by default `BitConfig()`. They are
            grown once widths are final; widths stay as they are if the budget limits nothing else.
        options: fields of `GrowthConfig`, such as ``divisor=8`` or ``seed_style="small"``.

    Attributes:
        structure: what can grow, and what is frozen.
        history: one record per epoch.
        config: the options; an interval or divisor that was to be found has become a number.
        divisor_choice: what ``divisor="auto"`` measured; else None.

    Raises:
        BudgetError: if no reachable network meets the budget, before anything changes.
        TraceError: if the model cannot be analysed, or does not run on the example inputs.
        ResizeError: if ``structure`` is not one of this model, before anything changes: a smaller copy of it fails.
        ConfigError: if an option is unknown or out of range, or ``shard`` fails on the whole model.

    Example:
        >>> import torch, apical
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> grower = apical.Grower(model, optimizer, example_inputs=(torch.zeros(1, 4),), budget="50% macs", epochs=8)
        >>> model[0].out_features
        8
        >>> x, y = torch.randn(32, 4), torch.randint(3, (32,))
        >>> for epoch in range(8):
        ...     loss = nn.functional.cross_entropy(model(x), y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     record = grower.end_epoch()
        >>> grower.finish()
        >>> model[0].out_features
        32
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        config: GrowthConfig | ScsConfig | None = None,
        *,
        steps_per_epoch: int | None = None,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
        shard: Shard | None = None,
        bits: BitConfig | None = None,
        **options: Any,
    ) -> None:
        self.config = _config(config, options)
        self.epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self.budget = Budget.of(budget)
        self._bit_budget, self._bit_config = self.budget.of_kinds(*BIT_KINDS), bits or BitConfig()
        self._check_bits(bits, shard)
        width_budget = self.budget.of_kinds(*WIDTH_KINDS)
        if width_budget is None:  # widths stay as they are: growth is over at once
            self.config = replace(self.config, interval=epochs, interval_unit="epochs")
        self.config, self._total = with_times(self.config, epochs, steps_per_epoch)
        inputs: Any = Call.of(example_inputs)
        optimizers = _optimizers(optimizer)
        check_kinds(optimizers)
        refuse_inference(model)
        if structure is None and width_budget is not None:
            refuse_shrunk(model)
        streams = self.config.streams if isinstance(self.config, GrowthConfig) else "keep"
        self.structure = trace(model, inputs, streams=streams) if structure is None else structure
        growing = GrowingModel(model, optimizers, copies, self.structure, shard)
        if structure is not None and shard is None:
            check_smaller_runs(model, structure, inputs)
        self._full_bytes = model_bytes(model)
        method = self._method_for(model, inputs, width_budget or Budget("100% macs"))
        if self.divisor_choice is None:  # it was given
            warn_of_idle_divisor((g.size for g in self.structure.groups), self.config.step)
        self._first = method.seed()
        self.history: list[EpochRecord] = []
        self.epoch, self._step = 0, 0
        self._spent_steps, self._spent_macs = 0, 0  # of the running epoch
        self._changes = no_changes()
        untrained = growing.untrained()
        if getattr(self.config, "seed_style", "") != "pretrained" and width_budget is not None:
            warn_of_trained(model, optimizers)
        warn_of_channels_last(model, self.structure, self.config.step)
        self._restructuring = Restructuring(growing, method)
        self._restructuring.become(self._first)
        self._bits: BitGrowth | None = None
        self._start_bits()
        if width_budget is not None:
            SHRUNK.add(model)
        warn_of_untrained(untrained)
        self._untrained = set(untrained)  # that have been warned of
        self._restructuring.listen()

    def _method_for(self, model: nn.Module, inputs: Any, widths: Budget) -> Method:
        """What chooses the networks. A budget that cannot be met is refused here, before anything changes."""
        self.config, self.divisor_choice = choose_divisor(model, self.structure, inputs, widths, self.config)
        latency = table_for(model, self.structure, inputs, widths)
        terms = terms_of(model, self.structure, widths, self.config, latency)
        if self._bit_budget is not None:
            least = terms.limits.least_of(self.structure)
            refuse_impossible_size(self._bit_budget, self.structure, least, self._full_bytes)
        return method_of(model, terms, self.config, self.epochs, self._total)

    # ---- what the loop calls ---------------------------------------------------------------------------------------

    @undisturbed()
    def end_epoch(self, metrics: Mapping[str, float] | None = None) -> EpochRecord:
        """Say that an epoch ended: the network is recorded, and restructured if it is time.

        Args:
            metrics: numbers to keep with the epoch, such as ``{"accuracy": 0.93}``; `report` draws them.

        Returns:
            The record of the epoch; it is also appended to ``history``.

        Raises:
            ResizeError: the model cannot be resized as it is now; nothing has changed, so that the call can be repeated
                once what the error names is mended.
            ConfigError: ``interval_unit="steps"``, and `end_step` was never called in this epoch; or a metric is no
                finite number.
            TrainingError: weights are no longer finite, or on the meta device; nothing has changed.
        """
        refuse_without_values(self.model)
        self._growing.settle()
        told = checked_metrics(metrics)
        if self.config.interval_unit == "steps" and not self._spent_steps:
            raise ConfigError(
                "end_epoch without any end_step: with interval_unit='steps' the network changes between steps; call "
                "grower.end_step() after every optimizer step, or set interval_unit='epochs'"
            )
        r = self._restructuring
        if not warn_of_another_optimizer(self.model, self._growing.optimizers, r.steps.count):
            self._warn_of_replaced()
        r.write_back()
        record = self._record()
        record["bits"] = {} if self._bits is None else self._bits.bits()
        record["metrics"] = told
        if self._spent_steps:
            record["mean_macs"] = self._spent_macs / self._spent_steps
        with r.undone_on_error():
            r.method.end_epoch()
            if self.config.interval_unit == "epochs" and r.method.due(self.epoch + 1):
                self._restructure(self.epoch + 1)
        self.epoch += 1
        if self._bits is not None:
            self._bits.end_epoch()
        self._start_bits()
        self._spent_steps, self._spent_macs = 0, 0
        record = cast(EpochRecord, {**record, **self._changes, "worth": r.worth(), "next_load": self.target_load})
        self._changes, r.steps.count = no_changes(), 0
        self.history.append(record)
        warn_of_more_epochs(self.epoch, self.epochs)
        return record

    @undisturbed()
    def end_step(self, state: Any = None) -> Any:
        """Say that an optimizer step ended; needed only for ``interval_unit="steps"``.

        Args:
            state: the recurrent state that the model hands on to the next step, if it has one.

        Returns:
            The state, resized (`apical.resize_state`) if the network has just changed.

        Raises:
            ResizeError: as `end_epoch`.
            TrainingError: as `end_epoch`.
        """
        self._growing.settle()
        before = self._growing.selection
        if self.config.interval_unit == "steps" and self._method.due(self._step + 1):
            with self._restructuring.undone_on_error():
                self._restructure(self._step + 1)
                self._start_bits()
        self._step += 1
        self._spent_steps += 1
        self._spent_macs += self.structure.macs(before.counts, before.skip)
        after = self._growing.selection
        return state if after is before else resize_state(state, self.structure, before.keep, after.keep)

    def add_copy(self, model: nn.Module) -> None:
        """Let a copy that was made of the present model, such as a moving average of its weights, be resized with it.

        One that was made before the Grower is given to it as ``copies=[…]``.

        Args:
            model: a deep copy of the model, or an ``AveragedModel`` of it.

        Raises:
            ConfigError: it is the model itself, or is resized already.
            ResizeError: its shapes are not those of the present model.

        Example:
            >>> import copy, torch, apical
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> grower = apical.Grower(model, optimizer, torch.zeros(1, 4), "50% macs", epochs=3)
            >>> ema = copy.deepcopy(model)
            >>> grower.add_copy(ema)
            >>> _ = grower.end_epoch()
            >>> ema[0].out_features == model[0].out_features
            True
        """
        self._growing.add_copy(model)

    def plan(self) -> Plan:
        """What training will cost, epoch by epoch, against the full model and the final network; print it.

        Example:
            >>> import torch, apical
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> grower = apical.Grower(model, optimizer, torch.zeros(1, 4), "50% macs", epochs=10)
            >>> round(grower.plan().train_macs_vs_dense, 2)
            0.41
        """
        return plan_of(self._method, self._first, self.epochs, str(self.budget))

    def report(self, path: str | Path = "report.html") -> Path:
        """Write a page about the training so far: the network by epoch, why it grew so, what it cost, the metrics.

        Args:
            path: of the file, which is replaced.

        Returns:
            The file.

        Raises:
            DataError: it cannot be written.
        """
        path = as_path(path, "path", DataError)
        title = type(self.model).__name__
        return write_report(run_record(self.structure, self.history, title, str(self.budget), self.epochs), path)

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._growing.model

    @property
    def store(self) -> DormantStore | None:
        """What is dormant; None after `finish`."""
        return self._growing.store

    @property
    def frozen(self) -> bool:
        """Whether the network will not change any more."""
        return self._method.frozen

    @property
    def components(self) -> Components:
        """What is known of all units and blocks."""
        return self._method.components

    @property
    def bound(self) -> BoundBudget:
        """The budget, which prices networks."""
        return self._method.terms.bound

    @property
    def latency(self) -> LatencyTable | None:
        """The measured table of a latency budget, with its error; else None."""
        return self._method.terms.latency

    @property
    def target_load(self) -> float:
        """Scheduled cost of the present network as a fraction of the budget."""
        return self._method.target_load

    @property
    def keep(self) -> dict[str, list[int]]:
        """The present network: kept positions by group name."""
        return {name: list(kept) for name, kept in self._growing.selection.keep.items()}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Blocks that the present network leaves out."""
        return tuple(sorted(self._growing.selection.skip))

    def finish(self) -> None:
        """Make the model final: hooks are removed and dormant weights released.

        The gates never were part of the forward pass, so there is nothing to fold: the model computes what it did.
        Warns if the network does not have its final size yet. A sharded model becomes a plain one, whole on every
        process, which must all call this. Called again, it does nothing.
        """
        if self.store is None:
            return
        self._growing.settle()
        if not self.frozen:
            present = self._growing.selection
            load = self.bound.load(present.keep, present.skip)
            warn_of_unfinished(self.epoch, self.epochs, load, str(self.budget))
        self._restructuring.steps.remove()
        if self._bits is not None:
            self._bits.finish()
        self._growing.release()

    @property
    def quantized(self) -> dict[str, QuantizedTensor]:
        """Bits and scale of every quantised weight, by name, once all are integers times a scale; `apical.save` packs
        the model by them."""
        return {} if self._bits is None else dict(self._bits.quantized)

    # ---- bits ------------------------------------------------------------------------------------------------------

    def _check_bits(self, bits: BitConfig | None, shard: Shard | None) -> None:
        if bits is not None and not isinstance(bits, BitConfig):
            raise ConfigError(f"bits must be an apical.growth.BitConfig, got {shown(bits)}")
        if bits is not None and self._bit_budget is None:
            raise ConfigError("bits are grown under a budget of size or bitops; add one, such as '10% size'")
        if self._bit_budget is not None and shard is not None:
            raise ConfigError("bits of a sharded model cannot be grown yet: leave out the budget of size, or shard")

    def _start_bits(self) -> None:
        """Grow bits from when widths are final."""
        if self._bit_budget is None or self._bits is not None or not self.frozen:
            return
        spent = self._spent_steps / self._steps_per_epoch if self._steps_per_epoch else 0.0
        self._bits = BitGrowth(
            self._growing, self.structure, self._bit_budget, self._full_bytes, self._bit_config,
            self.epoch + spent, self.epochs, self._steps_per_epoch,
        )  # fmt: skip

    # ---- restructuring ---------------------------------------------------------------------------------------------

    @property
    def _growing(self) -> GrowingModel:
        return self._restructuring.growing

    @property
    def _method(self) -> Method:
        return self._restructuring.method

    def _restructure(self, done: int) -> None:
        self._changes = add_changes(self._changes, self._restructuring.next(done))

    def _warn_of_replaced(self) -> None:
        names = self._growing.untrained()
        warn_of_replaced([n for n in names if n not in self._untrained])
        self._untrained.update(names)

    def _record(self) -> EpochRecord:
        now = self._growing.selection
        return epoch_record(self.structure, now, self.epoch, self.target_load, self.latency)

    # ---- what a prompt and a notebook show ---------------------------------------------------------------------------

    def _now(self) -> EpochRecord | None:
        """The present network; once finished, that of the last epoch."""
        if self.store is not None:
            return self._record()
        return self.history[-1] if self.history else None

    def _words(self) -> str:
        return shown_in_words(self.structure, self._now(), self.epoch, self.epochs, str(self.budget))

    def __repr__(self) -> str:
        return f"<Grower of {type(self.model).__name__}: {self._words()}>"

    def _repr_html_(self) -> str:
        now = self._now()
        return shown_as_html(self._words(), self.structure, None if now is None else now["widths"])

    # ---- records and state ------------------------------------------------------------------------------------------

    def _identity(self, config: GrowthConfig | ScsConfig) -> dict[str, Any]:
        return identity(self.structure, self.budget, self.epochs, self._steps_per_epoch, config)

    def __getstate__(self) -> dict[str, Any]:
        """A copy (``copy.deepcopy``, pickle) holds copies of the model and the optimizers, and watches those.

        Copy or pickle the three together, ``copy.deepcopy((model, optimizer, grower))``, so that they belong together.
        """
        if self._growing.sharded:
            raise ConfigError("a Grower of a sharded model cannot be copied or pickled: use apical.growth.save_sharded")
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        SHRUNK.add(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit: tensors and plain containers only."""
        return {
            "identity": self._identity(self.config),
            **self._restructuring.state_dict(),
            "epoch": self.epoch,
            "step": self._step,
            "spent": [self._spent_steps, self._spent_macs],
            "changes": dict(self._changes),
            "history": [dict(r) for r in self.history],
            "bits": None if self._bits is None else self._bits.state_dict(),
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restructure model, optimizers and copies to a saved state; load their own state dicts after this.

        Before it, they have the shapes of the seed: the model's `load_state_dict` would find a size mismatch then.

        Raises:
            CheckpointError: if the state belongs to another model, budget or configuration, or that of an optimizer
                was loaded before it, and nothing has changed then; or if it was changed since it was saved, and model
                and Grower are then to be made anew.
        """
        self._growing.settle()
        with changed_since("the saved growth state", "Build model, optimizer and Grower anew; these are half restored"):
            # the saved divisor counts, not the one that was measured when this Grower was made
            config = self.config if self.divisor_choice is None else adopted_divisor(self.config, state)
            check_identity(self._identity(config), state, self._method.SAVED)
            refuse_early_optimizer_state(self.model, self._growing.optimizers)
            self._take_up(state, config)

    def _take_up(self, state: Mapping[str, Any], config: GrowthConfig | ScsConfig) -> None:
        """Become what a state says, which is one of this Grower's."""
        if not isinstance(state["history"], list) or len(state["history"]) != state["epoch"]:
            raise CheckpointError(
                "the history of the saved growth state is no list of one record for each of its epochs, expected "
                f"{shown(state['epoch'])}: it was changed since it was saved. Nothing has changed."
            )
        self.config = config
        self._restructuring.load_state_dict(state, config)
        counts = [int(n) for n in checked([0] * 4, [state["epoch"], state["step"], *state["spent"]], "epoch or step")]
        self.epoch, self._step, self._spent_steps, self._spent_macs = counts
        changes = {**no_changes(), **state["changes"]}
        checked({}, {name: value for name, value in changes.items() if name != "blocks_left"}, "changes")
        self._changes = cast(Changes, changes)
        self.history = [cast(EpochRecord, dict(r)) for r in state["history"]]
        self._start_bits()
        if self._bits is not None:
            self._bits.load_state_dict(state["bits"])


def _config(given: GrowthConfig | ScsConfig | None, options: Mapping[str, Any]) -> GrowthConfig | ScsConfig:
    if given is not None and not isinstance(given, (GrowthConfig, ScsConfig)):
        raise ConfigError(f"config must be a GrowthConfig or ScsConfig, got {type(given).__name__}")
    return changed(GrowthConfig() if given is None else given, options)


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    found = (given,) if isinstance(given, Optimizer) else tuple(given) if isinstance(given, (tuple, list)) else ()
    wrong = [o for o in found if not isinstance(o, Optimizer)]
    if wrong or not found:
        order = "; the order is Grower(model, optimizer, example_inputs, …)" if isinstance(given, nn.Module) else ""
        raise ConfigError(
            "optimizer must be a torch.optim.Optimizer or a list of them, got "
            f"{shown(wrong[0] if wrong else given)}{order}"
        )
    return found

"""The trainer, for policies, reward models and SFT alike: a thin subclass of transformers.Trainer.

One dataset item is one whole optimizer step, a list of micro-batches, so the loss is normalised over the step and over
all ranks, whatever the layout: loss = sum(weight * loss over kept pairs) / sum(kept pairs). What is overridden is what
that needs, exact evaluation over rows, our metrics, and the stop on non-finite numbers.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from marginkit.batching import BatchPlan, MicroBatch
from marginkit.callbacks import Clock, EpochOrder, LogFile, ProgressBar, note_snapshot
from marginkit.core.loss import Loss, PairLoss
from marginkit.core.tensors import Labels, SequenceScores
from marginkit.cost import cost_of, pair_tokens
from marginkit.data.encoded import EncodedGroups
from marginkit.errors import RunFailed
from marginkit.gap_measure import GRADIENT_METRICS, measure_of, weigh
from marginkit.metering import Meter, measure, metrics_of, names_of, rows_of, summarise
from marginkit.models.packing import BY_PRODUCTS, Batch, Rung, labels_of, number_dtype
from marginkit.models.scorer import teach
from marginkit.neighbours import Mode, Neighbours, pair_keys
from marginkit.passes import Dice, batch_of, computed_tokens, scores_of, slope_of_each, slopes_at, weighted_sum
from marginkit.speed import Speedometer
from marginkit.steps import Steps, StepSampler


class MarginTrainer(Trainer):
    """Trains a model on encoded groups with a recipe's loss.

    Args:
        model: a transformers or PEFT model; its forward learns the keyword `batch=`.
        loss: the recipe.
        args: see `training_arguments`.
        plan: see `batch_plan`.
        train_groups: encoded groups, with reference scores joined in if the recipe needs them.
        eval_groups: the same for evaluation, or None.
        tokenizer: saved with every checkpoint.
        per: pair, or prompt (the pairs of a group share weight 1).
        population: microbatch or window, for recipes that look at other pairs.
        population_window: pairs in a window.
        log_file: where log lines go.
        rung: how rows are laid out and attention is computed, see `choose_rung`.
        speed: counts what training computes, or None.
    """

    loss_is_scaled_for_ga = True  # the loss below is already divided by the step's own count

    def __init__(
        self,
        model: Any,
        loss: Loss,
        args: TrainingArguments,
        plan: BatchPlan,
        train_groups: EncodedGroups,
        eval_groups: EncodedGroups | None,
        tokenizer: Any,
        *,
        per: str = "pair",
        population: Mode = "microbatch",
        population_window: int = 1024,
        log_file: Path | None = None,
        rung: Rung = "rows",
        speed: Speedometer | None = None,
    ) -> None:
        self.recipe = loss
        self.per, self.plan = per, plan
        self.rung, self.speed, self.cost = rung, speed, cost_of(model)
        self.pad_id: int = tokenizer.pad_token_id
        self.sampler, self.meter = StepSampler(plan, args.process_index), Meter()
        self.log_file, self.gaps = log_file, measure_of(loss, train_groups)
        self.step_rows: list[tuple[list[str], Tensor]] = []
        super().__init__(
            model=teach(model),
            args=args,
            train_dataset=Steps(train_groups),
            eval_dataset=None if eval_groups is None else Steps(eval_groups),
            processing_class=tokenizer,
            callbacks=[EpochOrder(self.sampler), ProgressBar(f"train {loss.name}")],
        )
        self.model_accepts_loss_kwargs = True
        self.neighbours = Neighbours(loss, population, population_window, self.accelerator) if loss.coupled else None
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        given = ([Clock(speed)] if speed is not None else []) + ([LogFile(log_file)] if log_file is not None else [])
        for callback in given:
            self.add_callback(callback)

    def create_accelerator_and_postprocess(self) -> None:
        """Shard float32 and compute under autocast, as with one process.

        Accelerate's own policy for FSDP2 rounds to bfloat16 whatever goes into and comes out of the model, sums of
        log-probabilities among it, and there is no autocast then.
        """
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            plugin.mixed_precision_policy = None

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """The autocast that FSDP2 leaves to its policy."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    # -- data

    def _collate(self, items: list[tuple[MicroBatch, list[Any]]]) -> list[Batch]:
        return [self._batch(micro, groups, self.plan) for micro, groups in items]

    def _batch(self, micro: MicroBatch, groups: list[Any], plan: BatchPlan) -> Batch:
        """One micro-batch with what each pair counts (`share`); 0 for a filler and for a pair left out."""
        batch = batch_of(
            plan,
            micro,
            groups,
            rung=self.rung,
            pad_id=self.pad_id,
            dtype=number_dtype(self.args.device),
            wants=tuple(sorted(self.recipe.needs & set(BY_PRODUCTS))),
        )
        batch["rows"] = [group.row for group in groups]
        batch["seen"] = float(sum(group.shape.packed for group in groups)) * micro.real
        batch["tokens"] = float(computed_tokens(batch))
        batch["operations"] = sum(self.cost.group(group.shape) for group in groups) * micro.real
        batch["pair_tokens"] = 0.0
        recipe, dtype = self.recipe, batch["length"].dtype
        if recipe.target is None:
            keep = torch.ones_like(batch["length"])
        elif recipe.per == "response":
            keep = recipe.kept(Labels(grade=batch["response_grade"]), len(batch["length"])).to(dtype)
        else:
            keep = recipe.kept(labels_of(batch), len(batch["pairs"])).to(dtype)
            batch["pair_tokens"] = float(pair_tokens(groups, keep.tolist())) * micro.real
            batch["key"] = pair_keys(batch["rows"], batch["group_of"])
            if recipe.target is not None and "chance" in recipe.target.part.needs:
                batch["chance"] = self._chance(groups).to(dtype)
            if self.gaps is not None:
                batch["apart"] = self.gaps.of(recipe, labels_of(batch), len(keep)).to(dtype)
        if self.per == "prompt":
            group_of = batch["group_of"] if recipe.per == "pair" else _group_of_responses(batch)
            kept_in_group = torch.zeros(len(groups), dtype=dtype).index_add(0, group_of, keep)
            keep = keep / kept_in_group.clamp(min=1.0)[group_of]
        batch["share"] = keep * micro.real
        per_token = recipe.objective.part.normaliser == "token"
        batch["units"] = float((batch["share"] * batch["length"] if per_token else batch["share"]).sum())
        return batch

    def _chance(self, groups: list[Any]) -> Tensor:
        """[P] uniform numbers that depend on seed, epoch and pair alone, not on the layout."""
        seed = [self.plan.seed, self.sampler.epoch]
        drawn = [np.random.default_rng([*seed, group.row]).random(len(group.chosen)) for group in groups]
        return torch.from_numpy(np.concatenate(drawn))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Optimizer steps of this rank; not prepared by accelerate, which would shard the steps once more."""
        steps: Any = self.train_dataset
        return DataLoader(
            steps,
            batch_sampler=self.sampler,
            collate_fn=self._collate,
            num_workers=self.args.dataloader_num_workers,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Micro-batches of this rank, as many on every rank."""
        steps: Any = self.eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else eval_dataset
        shapes = steps.groups.shapes()
        whole = replace(
            self.plan,
            shapes=shapes,
            prompts_per_step=max(1, len(shapes)),
            prompts_per_micro_batch=None,
            world_size=self.args.world_size,
        )
        micro = whole.step(range(len(shapes)))[self.args.process_index]

        def collate(items: list[tuple[MicroBatch, list[Any]]]) -> list[Batch]:
            return [self._batch(micro, groups, whole) for micro, groups in items]

        return DataLoader(steps, batch_sampler=[[key] for key in micro], collate_fn=collate)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The step's micro-batches and what their losses are divided by: the kept pairs (or tokens) of all ranks."""
        steps, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        names = ("units", "seen", "tokens", "pair_tokens", "operations")
        counts = [sum(batch[name] for step in steps for batch in step) for name in names]
        reduced = self.accelerator.reduce(torch.tensor(counts, dtype=number_dtype(device), device=device), "sum")
        spent = reduced.tolist()[1:]
        self.state.num_input_tokens_seen += int(spent[0])  # kept in the trainer's state, so it survives a resume
        if self.speed is not None:
            self.speed.start(*spent)
        return steps, reduced[0].clamp(min=1e-12)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Onto the device, as they are: under DeepSpeed the stock method rounds numbers to the type of the weights."""
        if isinstance(inputs, dict):
            return {name: self._prepare_inputs(value) for name, value in inputs.items()}
        if isinstance(inputs, list):
            return [self._prepare_inputs(value) for value in inputs]
        return inputs.to(self.args.device) if isinstance(inputs, Tensor) else inputs

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the stock estimate does not fit a list of micro-batches."""
        return 0

    # -- one optimizer step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over all micro-batches of the step; gradients are synchronised with the last."""
        accelerator = self.accelerator
        self.step_rows = []
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs):
            last = number == len(inputs) - 1
            accelerator.gradient_state._set_sync_gradients(last)
            if "passes" in batch:
                total = total + self._step_in_passes(model, batch, num_items_in_batch, last=last)
                continue
            with nullcontext() if last else accelerator.no_sync(model):
                total = total + super().training_step(model, batch, num_items_in_batch)
        if self.neighbours is not None:
            self.neighbours.end_step()
        return total

    def _step_in_passes(self, model: Any, batch: Batch, num_items_in_batch: Any, *, last: bool) -> Tensor:
        """Forward and backward of a micro-batch that takes several passes, see `passes`."""
        accelerator, dice = self.accelerator, Dice(self.args.device)
        model.train()
        batch = self._prepare_inputs(batch)

        def forward(batch: Batch) -> SequenceScores:
            dice.note()
            return model(batch=batch)  # type: ignore[no-any-return]

        with torch.no_grad(), self.compute_loss_context_manager():
            scores = scores_of(forward, batch)
        loss, slope = slopes_at(scores, lambda at: self._loss(at, batch, num_items_in_batch))
        count = len(batch["passes"])
        for number, (one, part) in enumerate(zip(batch["passes"], slope_of_each(batch, slope), strict=True)):
            final = last and number == count - 1
            accelerator.gradient_state._set_sync_gradients(final)
            with nullcontext() if final else accelerator.no_sync(model), dice.again(number):
                super().training_step(model, one | {"slope": part}, num_items_in_batch)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """sum(share * weight * loss) / (units of the step) * ranks, which gradient averaging over ranks undoes."""
        scores: SequenceScores = model(batch=inputs)
        if "slope" in inputs:
            loss = weighted_sum(scores, inputs["slope"])
        else:
            loss = self._loss(scores, inputs, num_items_in_batch)
        return (loss, scores) if return_outputs else loss

    def _loss(self, scores: SequenceScores, batch: Batch, num_items_in_batch: Any) -> Tensor:
        result = self._pair_loss(scores, batch, training=True)
        total = self._weighted(result, batch).sum()
        self.step_rows.append((names_of(batch, self.recipe.per), result.total.detach()))
        if batch["real"]:
            measure(self.meter, self.recipe, result, scores, batch)
            weigh(self.meter, self.gaps, batch, result, total)
        loss: Tensor = total / num_items_in_batch * self.accelerator.num_processes
        return loss

    def _pair_loss(self, scores: SequenceScores, batch: Batch, *, training: bool) -> PairLoss:
        if self.recipe.per == "response":
            return self.recipe.evaluate(scores, training=training)
        labels = replace(labels_of(batch), chance=batch.get("chance"), progress=self._progress(batch))
        pairs = scores.at(batch["pairs"], labels)
        population = None
        if self.neighbours is not None:
            population = self.neighbours.population(pairs, batch["key"], real=batch["real"], training=training)
        return self.recipe.evaluate(pairs, population, training=training)

    def _progress(self, batch: Batch) -> Tensor:
        """[P] the share of the training done: 0 in the first step, 1 in the last."""
        done = min(1.0, self.state.global_step / max(1, self.state.max_steps - 1))
        return torch.full_like(batch["weight"], done)

    def _weighted(self, result: PairLoss, batch: Batch) -> Tensor:
        """Share * weight * loss; exactly 0 for what counts nothing."""
        share: Tensor = batch["share"]
        weights = share * batch["weight"] if self.recipe.per == "pair" else share
        counts = share > 0 if result.target is None else (share > 0) & result.target.keep
        return torch.where(counts, weights * result.total, torch.zeros_like(result.total))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        broken = (
            norm is not None and not math.isfinite(float(norm)) and not self.args.fp16
        )  # fp16 skips such steps itself
        alone = self.args.world_size == 1 and not all(
            bool(torch.isfinite(losses).all()) for _, losses in self.step_rows
        )
        if broken or alone:  # the norm is reduced over ranks: all of them come here together
            bad = [
                f"{name} (loss {float(value)})"
                for names, losses in self.step_rows
                for name, value in zip(names, losses, strict=True)
                if not bool(torch.isfinite(value))
            ]
            everyone = [bad] if self.args.world_size == 1 else gather_object([bad])
            what = "a loss" if (named := [name for part in everyone for name in part]) else "the gradient"
            named = named or list(dict.fromkeys(name for names, _ in self.step_rows for name in names))
            raise RunFailed(
                f"step {self.state.global_step + 1}: {what} is not finite, the weights were left as they were; "
                f"groups: {', '.join(named[:8])}{' ...' if len(named) > 8 else ''}; "
                "check these rows, lower train.learning_rate, or use train.precision=fp32"
            )
        return norm

    # -- metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics to a training log line, reduced over ranks once."""
        if "loss" in logs:
            logs = logs | self.meter.reduce(self.accelerator, (*metrics_of(self.recipe), *GRADIENT_METRICS))
            logs["num_tokens"] = float(self.state.num_input_tokens_seen)
            logs |= {} if self.speed is None else self.speed.recent()
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Exact metrics over all rows: scores are gathered by group, fillers left out, and averaged once."""
        plain: Any = self.model
        model: Any = self._wrap_model(plain, training=False)
        model.eval()
        rows: dict[int, dict[str, list[float]]] = {}
        with torch.no_grad():
            for (batch,) in dataloader:
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    scores = scores_of(model, batch)
                found = self._rows(scores, batch)  # a filler too: what is gathered over ranks takes all of them
                if batch["real"]:
                    rows |= found
        if self.args.world_size > 1:
            rows = {number: row for part in gather_object([rows]) for number, row in part.items()}
        table = {
            name: np.array([value for group in sorted(rows) for value in rows[group][name]])
            for name in next(iter(rows.values()), {})
        }
        metrics = summarise(table)
        if self.gaps and self.log_file and self.is_world_process_zero():
            note_snapshot(self.log_file, self.state.global_step, self.gaps.name, table)
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(rows),
        )

    def _rows(self, scores: SequenceScores, batch: Batch) -> dict[int, dict[str, list[float]]]:
        result = self._pair_loss(scores, batch, training=False)
        return rows_of(self.recipe, result, self._weighted(result, batch), scores, batch)

    # -- the state of recipes that look at other pairs

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.neighbours is not None and self.args.should_save:
            self.neighbours.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.neighbours is not None and checkpoint is not None:
            self.neighbours.load(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.neighbours is not None and self.state.best_model_checkpoint is not None:
            self.neighbours.load(self.state.best_model_checkpoint)


def _group_of_responses(batch: Batch) -> Tensor:
    """[R] the group of every response."""
    return torch.repeat_interleave(torch.arange(len(batch["sizes"])), torch.tensor(batch["sizes"]))

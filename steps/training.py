"""What both kinds of training share: the library's arguments, curves and progress, the hardware."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from steps import ranks, schema
from steps.progress import Progress

LOWER_IS_BETTER = ("loss",)
Log = Callable[[dict[str, float], int], None]

torch.backends.cuda.enable_cudnn_sdp(False)     # on an H100 it plans for half a second at each new length of a batch


class History(TrainerCallback):
    """Keeps the curves and the best weights on dev, prints progress with the time left, says when to save and stop."""

    def __init__(self, selects_by: str, metric: str, evaluations: int, patience: int, log: Log):
        self.selects_by, self.evaluations, self.patience, self.log = selects_by, evaluations, patience, log
        self.metric = metric if selects_by in LOWER_IS_BETTER else selects_by
        self.loss: list[dict] = []
        self.epochs: list[dict] = []
        self.seconds: list[float] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.place = (0, 0)         # the epoch, and the steps of it that are done
        self.running = (0.0, 0)     # the sum of losses since the last line of the log, and the step of that
        self.trainer = None

    def state(self) -> dict:
        """What a checkpoint holds of it; the best weights are a file of their own."""
        return {"loss": self.loss, "epochs": self.epochs, "seconds": self.seconds, "place": self.place,
                "running": (float(self.trainer._tr_loss), self.trainer._globalstep_last_logged),
                "parts": self.trainer.parts}

    def restore(self, state: dict, best: dict[str, torch.Tensor] | None) -> None:
        """Continues from a checkpoint; the run gets the curves up to there."""
        self.loss, self.epochs, self.seconds, self.best = state["loss"], state["epochs"], state["seconds"], best
        self.place, self.running = tuple(state["place"]), tuple(state["running"])
        for row in self.loss:
            self.log({"train_loss": row["loss"], "learning_rate": row["learning_rate"]}, row["step"])
        for row in self.epochs:
            self.log_evaluation(row)

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch_began = time.monotonic()
        self.first, self.progress = state.global_step, Progress("training", state.max_steps, "steps")
        parts = round(args.num_train_epochs) * self.evaluations
        self.marks = {round(state.max_steps * part / parts) for part in range(1, parts + 1)}
        if self.first:
            say(f"continues from the checkpoint of step {self.first} of {state.max_steps}")
            self.trainer._tr_loss.fill_(self.running[0])
            self.trainer._globalstep_last_logged = self.running[1]

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first:     # the evaluation before tells nothing of how long a step takes
            self.progress.start(self.first)

    def on_step_end(self, args, state, control, **kwargs):
        self.place = (self.place[0], self.place[1] + 1)
        if self.evaluations > 1 and state.global_step in self.marks:
            control.should_evaluate = True
        if not state.epoch.is_integer():        # the end of an epoch has its evaluation first
            self.save_if_due(control)
        if ranks.first():
            self.progress.at(state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.place = (self.place[0] + 1, 0)
        self.save_if_due(control)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.best is not None:
            model.load_state_dict(self.best)

    def save_if_due(self, control) -> None:
        if self.trainer and self.trainer.checkpoints and self.trainer.wants_checkpoint():
            control.should_save = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        self.loss.append({"step": state.global_step, "loss": logs["loss"], "learning_rate": logs["learning_rate"]})
        self.log({"train_loss": logs["loss"], "learning_rate": logs["learning_rate"]}, state.global_step)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        epoch = round(state.epoch or 0, 2)
        row = {"epoch": int(epoch) if epoch == int(epoch) else epoch, "step": state.global_step,
               "dev_loss": metrics.get("eval_loss"), f"dev_{self.metric}": metrics[f"eval_{self.metric}"]}
        if row["dev_loss"] is not None and not math.isfinite(row["dev_loss"]):
            raise schema.InputError(f"the loss on dev is {row['dev_loss']} after step {row['step']}, and nothing is "
                                    "kept; lower train.learning_rate or mend the data")
        since = [r["loss"] for r in self.loss if r["step"] > (self.epochs[-1]["step"] if self.epochs else 0)]
        row["train_loss"] = sum(since) / len(since) if since else None
        now = time.monotonic()
        self.epochs.append(row)
        self.seconds.append(now - self.epoch_began)
        self.epoch_began = now
        self.log_evaluation(row)
        if row["step"] and self.kept() is row and ranks.first():
            self.best = {k: v.detach().to("cpu", copy=True) for k, v in kwargs["model"].state_dict().items()}
        if self.exhausted():
            control.should_training_stop = True

    def log_evaluation(self, row: dict) -> None:
        self.log({k: v for k, v in row.items() if k.startswith("dev_") and v is not None}, row["step"])

    def exhausted(self) -> bool:
        """Whether so many evaluations as `patience` says brought nothing better."""
        trained = [row for row in self.epochs if row["step"]]
        return bool(trained) and len(trained) - 1 - trained.index(self.kept()) >= self.patience

    def kept(self) -> dict:
        """The evaluation whose weights are kept: the best on dev of those after training began."""
        trained = [row for row in self.epochs if row["step"]]
        if self.selects_by in LOWER_IS_BETTER:
            return min(trained, key=lambda row: row[f"dev_{self.selects_by}"])
        return max(trained, key=lambda row: row[f"dev_{self.selects_by}"])

    def overfits_from(self) -> float | None:
        """The epoch after that with dev's lowest loss, where dev's ends above it and the training's not; else None."""
        rows = [row for row in self.epochs if row["step"] and None not in (row["dev_loss"], row["train_loss"])]
        lowest = min(rows, key=lambda row: row["dev_loss"], default=None)
        if rows and rows[-1]["dev_loss"] > lowest["dev_loss"] and rows[-1]["train_loss"] <= lowest["train_loss"]:
            return rows[rows.index(lowest) + 1]["epoch"]
        return None

    def table(self) -> str:
        """The evaluations with their timings, as text."""
        def number(value: float | None, width: int, digits: int) -> str:
            return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"

        lines = [f"{'epoch':>5}  {'train loss':>10}  {'dev loss':>10}  {'dev ' + self.metric:>20}  {'seconds':>8}"]
        for row, seconds in zip(self.epochs, self.seconds, strict=True):
            kept = "  kept" if row is self.kept() else ""
            lines.append(f"{row['epoch']:>5}  {number(row['train_loss'], 10, 5)}  {number(row['dev_loss'], 10, 5)}  "
                         f"{number(row['dev_' + self.metric], 20, 4)}  {seconds:>8.1f}{kept}")
        if epoch := self.overfits_from():
            lines.append(f"dev loss rises from epoch {epoch} on: the model over-fits there; what is kept is the best "
                         f"by {self.selects_by}")
        return "\n".join(lines)


def say(text: str) -> None:
    if ranks.first():
        print(text, flush=True)


def bf16(precision: str) -> bool:
    """Whether to compute in bf16: asked for, or `auto` on hardware with bf16 matrix units."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()     # without it bf16 is emulated, and slower than fp32


def arguments(settings: schema.Train, seed: int, rows: int, scratch: Path) -> dict:
    """The keyword arguments of the library's training arguments."""
    batches = math.ceil(rows / settings.batch_size)
    per_epoch = math.ceil(batches / settings.gradient_accumulation)
    steps = per_epoch * settings.epochs
    often = {"eval_strategy": "epoch"}
    if settings.evaluations > 1:    # History asks for them, at equal shares of the epoch and at its end
        often = {"eval_strategy": "steps", "eval_steps": steps}
    return {
        "output_dir": str(scratch),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.eval_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": math.ceil(steps * settings.warmup_ratio),
        "lr_scheduler_type": settings.scheduler if not (settings.scheduler == "constant" and settings.warmup_ratio)
        else "constant_with_warmup",
        "max_grad_norm": settings.max_grad_norm,
        "bf16": bf16(settings.precision),
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        **often,
        "eval_on_start": True,
        "save_strategy": "no",      # History says when, Resumable how
        "metric_for_best_model": f"eval_{settings.metric}",
        "greater_is_better": settings.metric not in LOWER_IS_BETTER,
        "logging_steps": max(1, min(steps // 100, per_epoch)),
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "dataloader_drop_last": ranks.world() > 1,      # else the library warns; our batches are never dropped
    }


def set_dropout(share: float | None, *modules: torch.nn.Module) -> None:
    """Gives all that drops out in them this share, where one is named; what is saved of a model holds no trace.

    That is layers, and numbers that layers of attention have. Raises InputError where there is neither.
    """
    if share is None:
        return
    layers = [layer for module in modules for layer in module.modules()]
    found = [(layer, "p") for layer in layers if isinstance(layer, torch.nn.Dropout)]
    found += [(layer, name) for layer in layers for name, value in vars(layer).items()
              if "dropout" in name and isinstance(value, float)]
    for layer, name in found:
        setattr(layer, name, share)
    if not found:
        raise schema.InputError(f"train.dropout is {share}, and the base model has no dropout; set it to null")


def follow(trainer: Trainer, history: History) -> None:
    """Our curves and lines of progress instead of the library's."""
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.add_callback(history)
    trainer.history, history.trainer = history, trainer


def hardware(precision: str) -> dict[str, str]:
    """What the bits of a training depend on besides its tracked inputs."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {"device": device, "precision": "bf16" if bf16(precision) else "fp32"}

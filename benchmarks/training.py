"""Our training of a recipe against the library's stock trainer in fp32: speed, and dev and test scores over seeds.

python -m benchmarks.training RECIPE [--seeds 1 2 3] [--steps 50] [--sides stock ours]

Run it where params.yaml and the recipe's prepared data are (dvc repro prepare@RECIPE). Every side trains the same
rows with the recipe's batch size, learning rate, schedule and threads, in turns within each seed, in this one process;
ratios are of what trainer.train() takes, once in wall seconds and once in the process's CPU seconds. Where others use
the machine, set `threads: 1` and read the CPU seconds: of one thread they hold no waiting and no spinning. With --steps
each side stops after so many steps and nothing is scored; without, it trains all epochs and the last model is scored by
the same code for every side. On a GPU each line also says what PyTorch's tensors took of its memory at the peak. The
sides are ours and these, all that the recipe has but `still` where --sides names none:

- stock: texts in random batches, tokenized as they come, padded to the longest, as the library's examples have it; not
  of multilingual and mlm
- padded: the same padded to max_length, as the published tutorial has it; of classifiers
- still: ours without dropout
"""

import argparse
import gc
import importlib
import random
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev

from steps import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--warm-up", type=int, default=0, help="steps of each side before its time begins")
    parser.add_argument("--batch-size", type=int, help="in place of the recipe's")
    parser.add_argument("--sides", nargs="+")
    options = parser.parse_args()
    command.quiet()

    import torch

    from steps import params, recipes

    project = params.load()
    torch.set_num_threads(project.threads)
    settings = project.recipe(options.recipe)
    changes = {"patience": 1000, "evaluations": 1} | ({"batch_size": options.batch_size} if options.batch_size else {})
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=changes)})
    run = Run(recipes.get(options.recipe), settings, Path("data/prepared") / options.recipe, options.steps,
              options.warm_up)
    sides = {"ours": run.ours, "still": lambda seed: run.ours(seed, dropout=0.0)}
    if options.recipe not in ("multilingual", "mlm"):
        sides = {"stock": run.stock, **sides}
    if settings.kind == "classification":
        sides = {"padded": lambda seed: run.stock(seed, padded=True), **sides}
    if missing := set(options.sides or ()) - sides.keys():
        parser.error(f"{options.recipe} has no side {', '.join(sorted(missing))}; choose of {', '.join(sides)}")
    sides = {name: side for name, side in sides.items() if name in (options.sides or sides.keys() - {"still"})}
    wall, cpu = {s: [] for s in sides}, {s: [] for s in sides}
    scores = {(s, split): [] for s in sides for split in ("dev", "test")}
    for turn, seed in enumerate(options.seeds):
        for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            taken, worked, model = sides[side](seed)
            wall[side].append(taken)
            cpu[side].append(worked)
            line = (f"seed {seed} {side:6}  {taken:7.1f} s wall  {worked:7.1f} s CPU  "
                    f"{run.samples / taken:7.0f} samples/s")
            if cuda():
                line += f"  {torch.cuda.max_memory_allocated() / 1e9:6.2f} GB"
            if options.steps < 0:
                for split in ("dev", "test"):
                    scores[side, split].append(run.score(model, split))
                    line += f"  {split} {scores[side, split][-1]:.4f}"
            print(line, flush=True)
    for side in sides:
        if side != "ours" and "ours" in sides:
            for name, seconds in (("wall", wall), ("CPU", cpu)):
                ratios = [a / b for a, b in zip(seconds[side], seconds["ours"], strict=True)]
                print(f"{side}/ours, {name} seconds: {min(ratios):.2f} to {max(ratios):.2f}, "
                      f"median {median(ratios):.2f}")
    for (side, split), found in scores.items():
        if found:
            spread = stdev(found) if len(found) > 1 else 0.0
            print(f"{side:6} {split:4} {run.recipe.METRIC} {mean(found):.4f} ± {spread:.4f} over {len(found)} seeds")


class Run:
    """The sides of one recipe on its prepared data."""

    def __init__(self, recipe, settings, data: Path, steps: int, warm_up: int):
        self.recipe, self.settings, self.data, self.steps, self.warm_up = recipe, settings, data, steps, warm_up
        self.base_model = Path(settings.base_model)
        self.kind = importlib.import_module(f"steps.{settings.kind}")
        self.samples = 0        # of the side that was run last

    def ours(self, seed: int, **changes):
        """The product's trainer; evaluation and checkpoints are off on every side, so that only training is timed."""
        from transformers.trainer_utils import IntervalStrategy

        with tempfile.TemporaryDirectory() as scratch:
            settings = self.settings.model_copy(update={"train": self.settings.train.model_copy(update=changes)})
            trainer, _ = self.kind.build_trainer(self.recipe, settings, seed, self.data, self.base_model,
                                                 Path(scratch), lambda metrics, step: None)
            trainer.args.eval_strategy = IntervalStrategy.NO
            trainer.args.eval_on_start = False
            trainer.args.max_steps = self.steps
            return *self.timed(trainer), trainer.model

    def stock(self, seed: int, padded: bool = False):
        """The library's trainer as its documentation shows it."""
        from datasets import Dataset
        from transformers import set_seed

        from steps import recipes

        set_seed(seed)
        settings = self.settings.train
        new = {"new_head": True} if self.settings.kind == "classification" else {}
        model = self.kind.load(self.base_model, self.settings, **new)
        names = recipes.texts(self.recipe, self.settings.prepare)
        rows = Dataset.from_file(str(self.data / "train.arrow"))
        rows = rows.select_columns([*names, *(["label"] if "label" in rows.column_names else [])])
        steps = -(-len(rows) // settings.batch_size) * settings.epochs
        with tempfile.TemporaryDirectory() as scratch:
            arguments = {
                "output_dir": scratch, "num_train_epochs": settings.epochs, "max_steps": self.steps, "seed": seed,
                "per_device_train_batch_size": settings.batch_size, "learning_rate": settings.learning_rate,
                "warmup_steps": round(steps * settings.warmup_ratio), "lr_scheduler_type": settings.scheduler,
                "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
                "logging_steps": 10_000, "use_cpu": not cuda(), "dataloader_pin_memory": cuda()}
            trainer = self._classifier(model, rows, arguments, padded) if self.settings.kind == "classification" else (
                self._encoder(model, rows, arguments))
            return *self.timed(trainer), model

    def _encoder(self, model, rows, arguments: dict):
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

        if getattr(self.recipe, "WORDS", False):
            ratio = self.settings.prepare.noise.ratio

            def damage(batch: dict) -> dict:
                kept = [[w for w in text.split() if random.random() >= ratio] or text.split()[:1]
                        for text in batch["text"]]
                return {"noised": [" ".join(words) for words in kept], "text": batch["text"]}

            rows.set_transform(damage)
        return SentenceTransformerTrainer(
            model=model, args=SentenceTransformerTrainingArguments(**arguments), train_dataset=rows,
            loss=self.recipe.loss(model, self.settings.train, rows))

    def _classifier(self, model, rows, arguments: dict, padded: bool):
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        length = self.settings.prepare.max_length
        rows = rows.map(lambda batch: model.tokenizer(batch["text"], truncation=True, max_length=length), batched=True,
                        remove_columns=["text"])
        collator = DataCollatorWithPadding(model.tokenizer, padding="max_length" if padded else True,
                                           max_length=length if padded else None)
        return Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=rows, data_collator=collator)

    def timed(self, trainer) -> tuple[float, float]:
        """Wall seconds and CPU seconds of all threads, from the end of the warm-up on."""
        import torch
        from transformers import TrainerCallback

        def now() -> tuple[float, float, float]:
            if cuda():
                torch.cuda.synchronize()
            return time.perf_counter(), time.process_time(), trainer.state.epoch or 0.0

        class WarmUp(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                nonlocal began
                if state.global_step == warm_up:
                    began = now()

        if cuda():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        warm_up = self.warm_up
        trainer.add_callback(WarmUp())
        began = now()
        trainer.train()
        wall, cpu, epochs = (end - start for start, end in zip(began, now(), strict=True))
        self.samples = round(epochs * len(trainer.train_dataset))
        return wall, cpu

    def score(self, model, split: str) -> float:
        from steps import batching

        task, path = self.recipe.TASK, self.data / f"{split}.arrow"
        texts = batching.texts(path, task.TEXTS)
        outputs = self.kind.outputs(model, [texts[name] for name in task.TEXTS], 64)
        return task.scores(outputs, batching.labels(batching.load(path)))[self.recipe.METRIC]


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()

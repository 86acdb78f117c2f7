"""The library's trainer -> one that can end at any moment and continue to the same bits, and that trains on nothing
that is not finite."""

import gc
import itertools
import json
import math
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from steps import ranks
from steps.checkpoint import Checkpoints
from steps.schema import InputError

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")     # PyTorch, CUDA, cuBLAS
WEIGHTS, BEST, STATE = "weights.safetensors", "best.safetensors", "history.json"
PATIENCE = 10       # seconds for the step or evaluation in hand to end, once we are asked to
SAVING = 12         # further seconds for its checkpoint; in all, less than a driver waits (flows/processes.py)
AT_ONCE = 5         # seconds in which further requests are the same one: a parent that died of it, a whole group asked


class Resumable:
    """What both trainers have besides the library's.

    A checkpoint holds all that the library leaves out: the loss's own weights, the curves, the best weights so far
    and the sum of losses since the last line of the log. It is taken only where no evaluation is pending.
    `parts` is how many a batch is computed in, one after another, for the same gradient in less memory.
    """

    checkpoints: Checkpoints | None = None
    history = None
    batches = None          # the LengthGroupedBatches of training
    parts = 1
    by_rows = True          # whether a batch may be cut into parts; else the loss computes them
    asked = 0.0             # when, to stop; 0 where not
    agreed = (False, False)     # of several ranks, as of the last step: to stop, to leave a checkpoint

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, from the checkpoint on where there is one; the model has the best weights on dev then."""
        if checkpoint:
            self.history.restore(json.loads((checkpoint / STATE).read_text(encoding="utf-8")),
                                 load_file(checkpoint / BEST) if (checkpoint / BEST).exists() else None)
            self.args.eval_on_start = False
        elif not ranks.first():
            torch.manual_seed(self.args.seed + ranks.rank())    # other dropout on other rows
        with self.listening():
            if self.history.exhausted():
                self.model.load_state_dict(self.history.best)
            else:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # What the library saves and loads

    def trained(self) -> torch.nn.Module:
        """All that has weights: the model, and the loss where it has some of its own."""
        parts = {"model": self.model} | ({"loss": self.loss} if isinstance(getattr(self, "loss", None),
                                                                          torch.nn.Module) else {})
        return torch.nn.ModuleDict(parts)

    def _save_checkpoint(self, model, trial) -> None:
        if self.asked and signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, SAVING)
        states = ranks.everyones({} if ranks.first() else self.random_state())
        if ranks.first():
            self.checkpoints.commit(self.state.global_step, lambda folder: self.write(folder, states))
        ranks.agreed(None)      # that it is committed, before one of them ends
        if self.agreed[0] if ranks.world() > 1 else self.asked:
            raise KeyboardInterrupt

    def wants_checkpoint(self) -> bool:
        """Whether one is due or we are asked to stop; of several ranks, as all of them know since the last step."""
        return any(self.agreed) if ranks.world() > 1 else self.asked or self.checkpoints.due()

    def random_state(self) -> dict[str, bytes]:
        """What a rank that does not write has for a checkpoint: {file name: content}."""
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.checkpoints.folder, prefix=".rank") as folder:
            self._save_rng_state(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def write(self, folder: Path, states: list[dict[str, bytes]]) -> None:
        save_model(self.trained(), str(folder / WEIGHTS))
        if self.history.best is not None:
            save_file(self.history.best, folder / BEST)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        for name, content in itertools.chain(*(state.items() for state in states)):
            (folder / name).write_bytes(content)
        self.state.save_to_json(str(folder / "trainer_state.json"))
        (folder / STATE).write_text(json.dumps(self.history.state()), encoding="utf-8")

    def _load_from_checkpoint(self, checkpoint, model=None) -> None:
        load_model(self.trained(), str(Path(checkpoint) / WEIGHTS))

    def _init_training_state(self, *arguments) -> tuple[int, int]:
        found = super()._init_training_state(*arguments)
        if arguments[3] is None:        # not resumed
            return found
        epoch, steps = self.history.place       # an epoch may have fewer batches than the library counts
        return epoch, steps * self.args.gradient_accumulation_steps

    # Several ranks

    def caches(self) -> bool:
        """Whether the loss computes its gradients by itself, which no wrapper can average."""
        return getattr(getattr(self, "loss", None), "uses_gradient_cache", False)

    def prepared(self, loader):
        """The library's loader for training; of several ranks, one of this rank's rows of every batch."""
        if ranks.world() == 1:
            return self.accelerator.prepare(loader)
        return ranks.sharded(loader, self.batches)

    # What is not finite

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.parts == 1 or not self.by_rows:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self.in_parts(model, inputs)
        if ranks.world() > 1:
            due = ranks.first() and self.checkpoints is not None and self.checkpoints.due()
            summed, stop, save = ranks.total(float(loss), self.asked, due)
            self.agreed = stop > 0, save > 0
            loss = torch.full_like(loss, summed / ranks.world())
        if not math.isfinite(loss):
            raise self.refused(f"the loss is {float(loss)}")
        return loss

    def counts(self, batch) -> float:
        """How many things the loss of a batch is a mean over."""
        return len(next(iter(batch.values())))

    def in_parts(self, model, inputs) -> torch.Tensor:
        """The same step with no more than a part of the batch in memory; each part has its share of the mean."""
        rows, whole = len(next(iter(inputs.values()))), self.counts(inputs)
        size, batches = math.ceil(rows / self.parts), self.current_gradient_accumulation_steps
        loss = 0.0
        try:
            for start in range(0, rows, size):
                part = {name: value[start:start + size] for name, value in inputs.items()}
                if count := self.counts(part):      # else a mean over nothing
                    self.current_gradient_accumulation_steps = batches * whole / count
                    loss = loss + super().training_step(model, part, None)
        finally:
            self.current_gradient_accumulation_steps = batches
        return loss

    def _clip_grad_norm(self, model):
        if ranks.world() > 1 and self.caches():
            ranks.average(self.trained().parameters())
        norm = super()._clip_grad_norm(self.model)      # what wraps it holds the loss's weights too
        if not math.isfinite(norm):
            raise self.refused(f"the gradient's norm is {float(norm)}")
        return norm

    def refused(self, what: str) -> InputError:
        """Names the step and the rows of its batch, before the weights have taken anything of it."""
        start, count = self.history.place[1] * self.args.gradient_accumulation_steps, (
            self.args.gradient_accumulation_steps)
        rows = sorted(itertools.chain(*itertools.islice(self.batches, start, start + count)))
        return InputError(f"{what} at step {self.state.global_step + 1}, in rows {', '.join(map(str, rows))} of "
                          "train.arrow (the first is 0): lower train.learning_rate or look at these rows")

    # Being asked to stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end training behind a checkpoint; again later, or after PATIENCE, without one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number, frame):
            if self.asked and (number == signal.SIGALRM or time.monotonic() - self.asked > AT_ONCE):
                raise KeyboardInterrupt
            if not self.asked:
                self.asked = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)


def parts(checkpoint: Path) -> int:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["parts"]


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or the machine's, was too small."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in NO_MEMORY))


def free_memory() -> None:
    """Gives back what a trainer held, which refers to itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

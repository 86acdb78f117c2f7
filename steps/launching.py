"""A training of several processes -> torchrun's ranks, their end and its reason."""

import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from steps import command
from steps.schema import InputError, Train

RANK = "--rank"         # the first argument of a process that torchrun started
SCRATCH = Path(".evergreen/ranks")
SOON = 10               # seconds within which a rank that was killed is the reason of the others' errors
PATIENCE = 25           # seconds a rank gets to end once torchrun is gone


def start(arguments: Sequence[str], train: Train, threads: int) -> None:
    """Runs `python -m steps.train --rank ARGUMENTS` in so many processes, until all have ended.

    An error of one rank ends them all. Raises its InputError, KeyboardInterrupt where they were asked to stop, and
    exits with 137 where one was killed, else with 1.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    where = rendezvous(train.nodes)
    enough_devices(train.processes)
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // train.processes))
    if train.nodes == 1 and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")       # nothing of one machine's ranks goes over its network
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.disable()       # of torchrun; what ends a rank is said below, once
    scratch = SCRATCH / f"{Path(arguments[2]).name}-{os.environ.get('NODE_RANK', 0)}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        run.run(run.get_args_parser().parse_args([
            f"--nnodes={train.nodes}", f"--nproc-per-node={train.processes}", *where, "--max-restarts=0",
            f"--log-dir={scratch}", "-m", "steps.train", RANK, *arguments]))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        end(error.failures)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def writes(arguments: Sequence[str]) -> bool:
    """Whether this process stands for the training: it is no rank, and on the first of several nodes."""
    return arguments[:1] != [RANK] and os.environ.get("NODE_RANK", "0") == "0"


def rendezvous(nodes: int) -> list[str]:
    """torchrun's arguments that say where the nodes meet. Raises InputError naming what the environment lacks."""
    if nodes == 1:
        return ["--standalone", "--local-addr=127.0.0.1"]
    if endpoint := os.environ.get("PET_RDZV_ENDPOINT"):     # torchrun's own name for its --rdzv-endpoint
        return ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}",
                f"--rdzv-id={os.environ.get('PET_RDZV_ID', 'evergreen')}"]
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise InputError(f"train.nodes = {nodes}, and the environment has no {missing[0]}: set {', '.join(names)} on "
                         "every node, or PET_RDZV_ENDPOINT (host:port of the node where they meet)")
    address, port, node = (os.environ[name] for name in names)
    return [f"--master-addr={address}", f"--master-port={port}", f"--node-rank={node}"]


def enough_devices(processes: int) -> None:
    """Raises InputError where there are GPUs, but not one for each process."""
    import torch

    if 0 < (cards := torch.cuda.device_count()) < processes:
        raise InputError(f"train.processes = {processes}, one GPU each, and this machine has {cards} (as "
                         f"CUDA_VISIBLE_DEVICES has it): set train.processes to {cards}")


def end(failures: dict) -> None:
    """Ends this process for the reason by which the first rank failed; the others followed it."""
    began = min(failure.timestamp for failure in failures.values())
    refused = [f for f in failures.values() if f.exitcode == 2]
    killed = [(rank, f) for rank, f in failures.items()
              if f.exitcode < 0 and f.exitcode != -signal.SIGTERM and f.timestamp - began < SOON]
    failed = sorted((Path(f.error_file).stat().st_mtime_ns if Path(f.error_file).exists() else 0, rank, f)
                    for rank, f in failures.items() if f.exitcode == 1)
    if refused:
        raise InputError(said(refused[0])["message"].removeprefix("InputError: "))
    if killed:
        rank, failure = killed[0]
        print(f"error: rank {rank} (process {failure.pid}) was killed by {failure.signal_name()}, as happens where "
              "memory is short; the other ranks were ended", file=sys.stderr, flush=True)
        sys.exit(128 - failure.exitcode)
    if failed:
        _, rank, failure = failed[0]
        told = said(failure)
        if command.no_space(error := RuntimeError(told["message"])):
            raise error
        print(f"{told['extraInfo']['py_callstack']}\nerror: rank {rank} failed: {told['message']}; the other ranks "
              "were ended", file=sys.stderr, flush=True)
        sys.exit(1)
    raise KeyboardInterrupt


def said(failure) -> dict:
    """What a rank left of its error; one that ended before it was a rank has told it by itself."""
    if isinstance(failure.message, dict):
        return failure.message
    return {"message": f"it ended with {failure.exitcode} before it began", "extraInfo": {"py_callstack": ""}}


def as_rank(body: Callable[[], None]) -> None:
    """Runs the body as one of torchrun's ranks; what ends it goes to torchrun, which tells the one that started it."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from steps import ranks

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    code = 0
    try:
        ranks.join()
        body()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        get_error_handler().record_exception(error)
        code = 2 if isinstance(error, InputError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)      # at once: what else would wait for ranks that are gone


def _end_with(parent: int) -> None:
    """A rank that waits for a dead one inside a library hears no signal."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(PATIENCE)
    os._exit(143)

"""A stage that runs in another clone: what it needs goes there through the DVC remote, what it made comes back.

Both clones stand at one commit with one params.yaml; what travels beside is dvc.lock's digests of the stage's inputs.
"""

from collections.abc import Callable, Iterable, Mapping

from flows import graph, preflight
from flows.processes import StageFailed
from steps import command, params, provenance
from steps.schema import InputError


def order(stage: graph.Stage, on_line: Callable[[str], None]) -> dict:
    """Pushes what the stage reads; returns the parameters with which another clone carries it out.

    Raises InputError where tracked files differ from the commit: the other clone has only the commit.
    """
    clean(f"{stage.name} runs on the work pool {stage.work_pool}, whose clone has the commit alone; commit them, and "
          "bring the commit there")
    whole(stage.upstream, "run the same command again")
    graph.transfer("push", stage.upstream, on_line)
    known = params.read(graph.LOCK)["stages"]
    return {"stage": stage.name, "commit": provenance.git_commit(), "params_sha256": provenance.sha256(params.PARAMS),
            "upstream": {name: known[name] for name in stage.upstream}}


def carry_out(stage: str, commit: str, params_sha256: str, upstream: Mapping[str, dict],
              on_line: Callable[[str], None]) -> str:
    """Runs the stage in this clone, or restores it, and pushes what it made. Returns ran, restored or unchanged."""
    clean(f"{stage} would not be what the caller asks for; commit or remove the changes")
    if (here := provenance.git_commit()) != commit:
        raise InputError(f"this clone stands at commit {here}, the caller at {commit}; check out the same in both")
    if provenance.sha256(params.PARAMS) != params_sha256:
        raise InputError(f"{params.PARAMS} of this clone is not the caller's (sha256 {params_sha256})")
    graph.adopt(upstream)
    graph.transfer("pull", upstream, on_line)
    if graph.discard_damaged(upstream):         # of this clone's cache
        graph.transfer("pull", upstream, on_line)
        whole(upstream, "it came so from the DVC remote: remove the same objects there, and the next run pushes them")
    preflight.before(stage)
    outcome = graph.reproduce(stage, on_line, options=["--pull"])
    graph.transfer("push", [stage], on_line)
    return outcome


def whole(stages: Iterable[str], remedy: str) -> None:
    """Raises StageFailed where the stages' outputs are not what dvc.lock says, in the cache and in the workspace."""
    if damaged := graph.discard_damaged(stages):
        raise StageFailed("\n".join([*damaged, remedy]))


def bring_back(stage: str, on_line: Callable[[str], None]) -> str | None:
    """Restores what some clone made and records it in dvc.lock as a run here would; None where nobody made it yet."""
    said: list[str] = []
    try:
        outcome = graph.reproduce(stage, said.append, options=["--pull"], EVERGREEN_STEPS="none")
    except InputError as error:
        if command.NOT_MADE in str(error):
            return None
        raise
    for line in said:
        on_line(line)
    return outcome


def clean(remedy: str) -> None:
    if changed := provenance.changed_files():
        raise InputError(f"tracked files differ from the last commit: {', '.join(changed)}; {remedy}")

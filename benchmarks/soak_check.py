"""The history of a soak, its registry, disk and processes -> what is wrong, a line each."""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

VERSIONS = """
import json
from pathlib import Path
from steps import history, journal, registry, tracking
found = tracking.client()
log = journal.read(found, "sts")
versions = {}
for v in found.search_model_versions("name = 'sts'"):
    registry.verified(found, "sts", int(v.version))
    run = found.get_run(v.run_id)
    versions[v.version] = {"seed": int(run.data.params["seed"]), "weights": v.tags["weights_sha256"], "run": v.run_id,
                           "model": v.source.rpartition("/")[2], "status": run.info.status}
print(json.dumps({"versions": versions, "champion": history.in_charge(found, "sts"), "problems": log.problems,
                  "says": log.champion(), "open": [e.number for e in log.events if e.state == "open"],
                  "running": [r.info.run_id for r in found.search_runs(["1"]) if r.info.status == "RUNNING"]}))
"""
TRAIN = """
import sys
from pathlib import Path
from steps import checkpoint, command, params, train
from steps.provenance import sha256
command.quiet()
checkpoint.PLACE, room = Path("undisturbed/checkpoints"), Path("undisturbed")
for seed in map(int, sys.argv[1:]):
    project = params.load().model_copy(update={"seed": seed, "checkpoint_seconds": 1e9})
    train.train("sts", project.recipe("sts"), project, Path("data/prepared/sts"), room / "model", room / "curves")
    print("weights", seed, sha256(room / "model/model.safetensors"), flush=True)
"""


def check(project, folder: Path, history: Path, seconds: float) -> int:
    """Prints what is wrong with what a soak left, and its figures; 1 where anything is."""
    time.sleep(5)
    events = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    store = json.loads(project.run(sys.executable, "-c", VERSIONS).stdout.splitlines()[-1])
    spare, kept = disk(project.folder, folder, store["versions"])
    seeds = list(dict.fromkeys(e["seed"] for e in events if e["what"] == "start"))
    said = project.run(sys.executable, "-c", TRAIN, *map(str, seeds), EVERGREEN_TRACKING="none").stdout
    expected = {int(seed): sha for seed, sha in re.findall(r"^weights (\d+) (\w+)$", said, re.MULTILINE)}
    found = {"lost or wrong results": lost(events, store["versions"], expected),
             "wrong champions": wrong_champions(events, store), "progress lost": progress(events),
             "repairs": repairs(events), "orphan processes": orphans(events)}
    share = sum(spare.values()) / sum(kept.values())
    found["disk"] = [f"{share:.1%} of it is needed by nothing"] if share > 0.1 else []
    counts = Counter(e["what"] for e in events)
    print(f"\n{len(seeds)} retrainings, {counts['start']} starts, {counts['kill']} kills, {counts['save']} checkpoints "
          f"saved, {counts['resume']} continued, {counts['register']} versions, {seconds:.0f} s")
    for what, lines in found.items():
        print(f"{what}: {len(lines)}", *lines, sep="\n  ")
    print(f"on the disk: {sum(kept.values()) / 1e6:.1f} MB of versions and results, and {share:.1%} of that besides; "
          "the largest of these:", *(f"{spare[p]} bytes {p}" for p in sorted(spare, key=lambda p: -spare[p])[:5]),
          sep="\n  ")
    return int(any(found.values()))


def lost(events: Sequence[Mapping], versions: Mapping[str, Mapping], expected: Mapping[int, str]) -> list[str]:
    """Every retraining has one version, with the weights of a training that nobody disturbed, and none went away."""
    wrong = []
    for seed, weights in expected.items():
        of = [v for v in versions.values() if v["seed"] == seed]
        if [v["weights"] for v in of] != [weights]:
            wrong.append(f"seed {seed} has {len(of)} versions; asked for was one with weights {weights[:12]}")
        if not [e for e in events if e["what"] == "end" and e["seed"] == seed]:
            wrong.append(f"seed {seed} came to no end")
    made = [e["version"] for e in events if e["what"] == "register"]
    if sorted(made) != sorted(map(int, versions)):
        wrong.append(f"registered were {made}, there are {sorted(map(int, versions))}")
    wrong += [f"version {e['version']}: {e['what']}" for e in events if e["what"] in ("unregister", "withdraw")]
    wrong += [f"version {n} has a run that is {v['status']}" for n, v in versions.items() if v["status"] != "FINISHED"]
    return wrong


def wrong_champions(events: Sequence[Mapping], store: Mapping) -> list[str]:
    """The champions were, one after the other, the versions that the rules promote, and the log says the same."""
    promoted = {e["seed"]: e["promoted"] for e in events if e["what"] == "start"}
    right = [int(n) for n, v in sorted(store["versions"].items(), key=lambda item: int(item[0]))
             if promoted[v["seed"]]]
    were = [e["version"] for e in events if e["what"] in ("name", "rename") and e["alias"] == "champion"]
    wrong = [] if were == right else [f"champions were {were}, right are {right}"]
    wrong += [f"{e['version']} lost its alias" for e in events if e["what"] == "unname" and e["alias"] == "champion"]
    if not store["champion"] == store["says"] == (right or [None])[-1]:
        wrong.append(f"in charge is {store['champion']}, the log says {store['says']}, right is {right[-1:]}")
    return [*wrong, *store["problems"], *(f"entry {n} is open" for n in store["open"])]


def progress(events: Sequence[Mapping]) -> list[str]:
    """A training that was killed goes on from a checkpoint that it saved, and saves none a second time."""
    wrong, saved = [], {}
    for event in events:
        steps = saved.setdefault(event.get("seed"), [])
        if event["what"] == "save":
            if steps and event["step"] <= steps[-1]:
                wrong.append(f"seed {event['seed']} saved step {event['step']} behind {steps[-1]}: it began anew")
            steps.append(event["step"])
        elif event["what"] == "resume" and event["step"] not in steps:
            wrong.append(f"seed {event['seed']} continued from step {event['step']}, saved were {steps}")
    return wrong


def repairs(events: Sequence[Mapping]) -> list[str]:
    """A start fails because something was killed in it, and for no other reason."""
    wrong, killed = [], False
    for event in events:
        killed = event["what"] == "kill" or (killed and event["what"] != "start")
        if event["what"] in ("broken", "hang", "lost") and not (killed and event["what"] == "broken"):
            wrong.append(json.dumps(event))
    return wrong


def orphans(events: Sequence[Mapping]) -> list[str]:
    return [f"behind the end of seed {e['seed']}: {left}" for e in events if e["what"] == "end" for left in e["left"]]


def disk(project: Path, folder: Path, versions: Mapping[str, Mapping]) -> tuple[dict[str, int], dict[str, int]]:
    """{file: bytes} of what nothing needs any more, and of what the versions are made of and the workspace holds."""
    from ruamel.yaml import YAML

    artifacts, cache = project / ".evergreen/artifacts/sts", project / ".dvc/cache/files/md5"
    locks = [project / "dvc.lock", *(artifacts / v["run"] / "artifacts/evaluation/dvc.lock" for v in versions.values())]
    named = set()
    for lock in locks:
        for stage in YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"].values():
            named |= {entry["md5"] for entry in (*stage.get("deps", ()), *stage.get("outs", ())) if "md5" in entry}
    for digest in [d for d in named if d.endswith(".dir")]:
        if (listed := cache / digest[:2] / digest[2:]).exists():
            named |= {entry["md5"] for entry in json.loads(listed.read_text(encoding="utf-8"))}
    owned = {v["run"] for v in versions.values()} | {v["model"] for v in versions.values()}
    spare, kept = {}, {}
    for path in (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        size, inside = path.stat().st_size, path.relative_to(folder).parts
        if path.is_relative_to(cache):
            needed = "".join(path.relative_to(cache).parts) in named
        elif path.is_relative_to(artifacts):
            place = path.relative_to(artifacts).parts
            needed = (place[1] if place[0] == "models" else place[0]) in owned
        elif any(".partial" in part for part in inside) or inside[0] in ("tmp", "home") or "checkpoints" in inside:
            needed = False
        elif inside[0] == "project" and inside[1] in ("data", "models", "evaluation"):
            needed = True
        else:
            continue        # code, git, databases, locks: what a run that nobody disturbs has too
        (kept if needed else spare)[str(path.relative_to(folder))] = size
    return spare, kept

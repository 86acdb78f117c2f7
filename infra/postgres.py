"""PostgreSQL's programs -> a cluster of its own in a folder, on 127.0.0.1, where everybody needs a password."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from infra import keys
from infra.processes import Part, wait
from steps.schema import InputError

CLEAN = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}


def programs() -> dict[str, str]:
    """On the path, or where Debian keeps them."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1])])
    found = {name: shutil.which(name, path=places) for name in ("initdb", "postgres")}
    if not all(found.values()):
        raise InputError("PostgreSQL is not installed; on Debian and Ubuntu: apt-get install postgresql")
    return {name: str(Path(path).resolve()) for name, path in found.items()}


def user(folder: Path) -> dict:
    """PostgreSQL refuses to run as root, so it gets the user that its package made, who must reach the folder."""
    if os.getuid() != 0:
        return {}
    import pwd

    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise InputError("PostgreSQL does not run as root, and there is no user postgres; "
                         "run make stack as another user") from None
    for above in folder.parents:
        if not above.stat().st_mode & 0o001:
            raise InputError(f"PostgreSQL does not run as root, and its user postgres cannot enter {above}; run "
                             f"make stack as another user, or let it in: chmod o+x {above}")
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def make(folder: Path, password: str) -> None:
    """Makes the cluster under another name first, so that a half one is never used."""
    who, half = user(folder), folder.with_name(folder.name + ".new")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    keys.write(half / "password", password.encode())
    if who:
        for path in (half, half / "password"):
            shutil.chown(path, "postgres", "postgres")
    subprocess.run([programs()["initdb"], "--pgdata", half / "data", "--username", "postgres", "--encoding", "UTF8",
                    "--auth", "scram-sha-256", "--pwfile", half / "password"], check=True, env=CLEAN, cwd=half,
                   stdout=subprocess.DEVNULL, **who)
    (half / "password").unlink()
    half.rename(folder)


def start(part: Part, folder: Path, port: int) -> None:
    """After a kill, once the number of the killed one is free: PostgreSQL starts beside nobody."""
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        before = int((folder / "data/postmaster.pid").read_text(encoding="utf-8").split()[0])
        wait("the killed PostgreSQL", lambda: not Path(f"/proc/{before}").exists(), None, seconds=20)
    part.start([programs()["postgres"], "-D", str(folder / "data"), "-p", str(port), "-c", "max_connections=200",
                "-c", "log_min_error_statement=panic",      # a statement may hold a secret
                "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="], CLEAN, cwd=folder,
               **user(folder))

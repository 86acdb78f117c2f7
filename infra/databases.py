"""A PostgreSQL server -> the databases of Prefect and MLflow, each with a role that owns it and nothing else.

python -m infra.databases HOST:PORT SECRETS
"""

import sys
from pathlib import Path

from infra import keys

NAMES = ("prefect", "mlflow")


def make(address: str, folder: Path) -> None:
    """Makes those that are missing. Raises OSError while the server cannot be reached."""
    import psycopg2
    from psycopg2 import sql

    host, _, port = address.rpartition(":")
    try:
        connection = psycopg2.connect(host=host, port=port, user="postgres", dbname="postgres", connect_timeout=5,
                                      password=keys.read(folder, "postgres"))
    except psycopg2.OperationalError as error:
        raise ConnectionError(str(error).strip()) from None
    connection.autocommit = True        # a database is not made in a transaction
    with connection.cursor() as cursor:
        for name in NAMES:
            who = sql.Identifier(name)
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
            if not cursor.fetchone():
                cursor.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    who, sql.Literal(keys.read(folder, f"postgres_{name}"))))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if not cursor.fetchone():
                cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(who, who))
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(who))
    connection.close()


def main(arguments: list[str]) -> None:
    address, folder = arguments
    make(address, Path(folder))


if __name__ == "__main__":
    from steps import command

    sys.exit(command.status(main, sys.argv[1:]))

"""A server's name -> every route of it with its methods, as JSON: python -m tests.routes prefect|mlflow."""

import json
import sys

from fastapi.routing import iter_route_contexts


def of_fastapi(app) -> list:
    return [[route.path, sorted(route.methods or ["WEBSOCKET"])] for route in iter_route_contexts(app.routes)
            if hasattr(route, "methods")]


def prefect() -> list:
    from prefect.server.api.server import create_api_app, create_ui_app

    return [[f"/api{path}", methods] for path, methods in of_fastapi(create_api_app())] + of_fastapi(
        create_ui_app(ephemeral=False))


def mlflow() -> list:
    """MLFLOW_AUTH_CONFIG_PATH names a store of users of its own, so that no server is needed."""
    from mlflow.server import app
    from mlflow.server.auth import create_app

    return of_fastapi(create_app(app)) + [[r.rule, sorted(r.methods)] for r in app.url_map.iter_rules()]


if __name__ == "__main__":
    print(json.dumps({"prefect": prefect, "mlflow": mlflow}[sys.argv[1]]()))

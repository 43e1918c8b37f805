"""What a request's path means: the part that routes see, and the template of its route. Knows nothing of endpoints."""

from __future__ import annotations

from starlette.routing import Match
from starlette.types import Scope

OTHER = "other"


def route_path(scope: Scope) -> str:
    """The path as routes match it: without the prefix (`root_path`) under which a proxy serves the application."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] or "/" if root and f"{path}/".startswith(f"{root}/") else path


def path_template(scope: Scope) -> str:
    """The template of the route that a request takes, `other` where there is none: a bounded set of words.

    Requests that were refused before routing are matched here.
    """
    route = scope.get("route")
    if route is None:
        routes = getattr(scope.get("app"), "routes", ())
        route = next((known for known in routes if known.matches(scope)[0] is not Match.NONE), None)
    return getattr(route, "path", "") or OTHER

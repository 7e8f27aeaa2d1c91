"""OpenAPI links: which calls an answer leads to. People read them, and a test that walks the service follows them.

What a POST makes is known to all calls below its own path by the `id` in its answer; an upload is what jobs ask for.
"""

from typing import Any

_ID = "$response.body#/id"
_ASKS = {  # of an upload, by the path that it is posted to
    "/v1/separations": {"mixture": {"audio_id": _ID}, "targets": [{"label": "Dog"}]},
    "/v1/detections": {"audio_id": _ID},
    "/v1/queries": {"name": "mine", "examples": [{"audio_id": _ID}]},
}


def add_links(made: dict[str, Any]) -> None:
    """Add the links to a document."""
    paths = made["paths"]
    for path, operations in paths.items():
        for status in ("201", "202"):
            answer = operations.get("post", {}).get("responses", {}).get(status)
            if answer is not None and "{" not in path:
                found = _below(paths, path.removesuffix("/presign"), "/audio/id" if path.endswith("presign") else "/id")
                if path == "/v1/audio":
                    found |= {
                        paths[other]["post"]["operationId"]: {
                            "operationId": paths[other]["post"]["operationId"],
                            "requestBody": body,
                        }
                        for other, body in _ASKS.items()
                    }
                answer["links"] = found


def _below(paths: dict[str, Any], path: str, pointer: str) -> dict[str, Any]:
    """Links to every call below a path, by its first parameter."""
    links = {}
    for other, operations in paths.items():
        if other.startswith(f"{path}/{{"):
            parameter = other.removeprefix(f"{path}/{{").partition("}")[0]
            for operation in operations.values():
                links[operation["operationId"]] = {
                    "operationId": operation["operationId"],
                    "parameters": {parameter: f"$response.body#{pointer}"},
                }
    return links

"""OpenAPI links: the calls that a response leads to. People read them, and a test that walks the service follows them.

What a POST creates is known to all calls below its own path by the `id` in its response; jobs refer to uploads.
"""

from typing import Any

_ID = "$response.body#/id"


def add_links(made: dict[str, Any], upload_bodies: dict[str, dict[str, Any]]) -> None:
    """Add the links to a document.

    upload_bodies: by path, the body of the POST that an upload leads to.
    """
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
                        for other, body in upload_bodies.items()
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

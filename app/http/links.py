"""OpenAPI links: the operations that a response leads to, for readers and for tests that follow them.

The `id` in the response to a POST is the first parameter of all operations below its path; the `id` of an upload is
also part of the bodies that create jobs.
"""

from typing import Any


def add_links(document: dict[str, Any], upload_bodies: dict[str, dict[str, Any]]) -> None:
    """Add links to an OpenAPI document.

    upload_bodies: by path, an example of the body that creates a job from an upload.
    """
    paths = document["paths"]
    for path, operations in paths.items():
        for status in ("201", "202"):
            response = operations.get("post", {}).get("responses", {}).get(status)
            if response is not None and "{" not in path:
                links = _links_below(
                    paths, path.removesuffix("/presign"), "/audio/id" if path.endswith("presign") else "/id"
                )
                if path == "/v1/audio":
                    links |= {
                        paths[other]["post"]["operationId"]: {
                            "operationId": paths[other]["post"]["operationId"],
                            "requestBody": body,
                        }
                        for other, body in upload_bodies.items()
                    }
                response["links"] = links


def _links_below(paths: dict[str, Any], path: str, pointer: str) -> dict[str, Any]:
    """Return links to every operation below a path, by its first parameter."""
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

"""All stems of a separation in one zip."""

import io
import zipfile

from tests.app.conftest import Service, problem


def test_all_stems_in_one_zip(service: Service) -> None:
    job = service.separate(targets=[{"name": "a b.c", "label": "Dog"}])
    problem(service.client.get(job["archive_url"]), 404, "not_found")
    stems = {"a b.c": bytes(range(256)) * 4096, "residual": b"rest", "silent": b""}
    service.finish(job["id"], stems)
    answer = service.client.get(job["archive_url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["content-disposition"] == 'attachment; filename="street.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == {
            f"street-{name}.flac": content for name, content in stems.items()
        }
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    assert service.client.get(job["archive_url"]).content == answer.content
    service.deps.storage.delete_prefix(f"separations/{job['id']}")
    problem(service.client.get(job["archive_url"]), 404, "not_found")
    service.deps.jobs.expire(job["id"])
    problem(service.client.get(job["archive_url"]), 410, "stems_expired")

"""Names of targets, of stems' addresses and of their files."""

import io
import unicodedata
import zipfile
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.ranges import attachment
from app.records.separations import StemRecord
from app.separations import names
from app.separations.file_names import file_name, file_names
from tests.app.conftest import Service, problem

VALID = ["dog", "é", "鳥", "Vocals (left)", ".hidden", "a b.c", "50 % & more", "x" * 64, "鳥" * 64, "🐦" * 64, "#1?"]


@pytest.mark.parametrize("other", ["DOG", "dog", "Dog"])
def test_names_differ_whatever_their_case(service: Service, other: str) -> None:
    mixture = {"audio_id": service.recording()["id"]}
    targets = [{"name": name, "label": "Dog"} for name in ("dog", other)]
    answer = service.client.post("/v1/separations", json={"mixture": mixture, "targets": targets})
    assert problem(answer, 422, "request_invalid")["errors"][0]["pointer"] == "/targets/1/name"


def test_accents_are_normalized_and_distinct_in_any_encoding(service: Service) -> None:
    job = service.separate(targets=[{"name": "cafe\u0301", "label": "Dog"}])
    assert job["targets"][0]["name"] == "café"
    targets = [{"name": "CAFÉ", "label": "Dog"}, {"name": "cafe\u0301", "label": "Siren"}]
    mixture = {"audio_id": service.recording()["id"]}
    problem(
        service.client.post("/v1/separations", json={"mixture": mixture, "targets": targets}), 422, "request_invalid"
    )


@pytest.mark.parametrize("name", [name for name in VALID if len(name.encode()) < 240], ids=ascii)
def test_a_stem_is_found_by_its_address_and_named_after_its_recording(service: Service, name: str) -> None:
    job = service.separate(targets=[{"name": name, "label": "Dog"}])
    service.finish(job["id"], {name: b"0123456789"})
    (stem,) = service.client.get(job["url"]).json()["stems"]
    assert stem["name"] == name and quote(name, safe="") in stem["url"]
    separator = "&" if "?" in stem["url"] else "?"
    answer = service.client.get(f"{stem['url']}{separator}download=1")
    assert answer.content == b"0123456789"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="street-') and disposition.isascii()
    assert disposition.rstrip('"').endswith(".flac")
    answer = service.client.get(f"{stem['url']}{separator}filename=d%C3%B6g.flac")
    assert answer.headers["content-disposition"] == "attachment; filename=\"d_g.flac\"; filename*=UTF-8''d%C3%B6g.flac"
    problem(service.client.get(f"{stem['url']}{separator}filename=..%2Fx"), 422, "request_invalid")


def test_file_names_hold_nothing_that_windows_refuses() -> None:
    stem = StemRecord(name='a:b"c', key="x/0.wav", content_type="audio/wav", bytes=1, sha256="", peak=0, loudness=None)
    assert file_name(stem, "str<eet>.mp3") == "str_eet_-a_b_c.wav"
    assert file_name(stem, None) == "a_b_c.wav"


def stem_of(name: str) -> StemRecord:
    return StemRecord(name=name, key="x/0.flac", content_type="audio/flac", bytes=1, sha256="", peak=0, loudness=None)


ENDS = st.text(st.sampled_from('aA?*:"_é鳥🐦İß'), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["", "dog", "🐦" * 61, "con"]), ENDS).map("".join), max_size=16), ENDS)
def test_files_of_an_archive_are_distinct_on_every_file_system(wanted: list[str], source: str) -> None:
    """Whatever the case and the encoding of accents, and although names are cut and `?` becomes `_`."""
    distinct = list({names.fold(name): names.normalize(name) for name in wanted if name}.values())
    files = file_names([stem_of(name) for name in distinct], source or None)
    for form in ("NFC", "NFD"):
        assert len({unicodedata.normalize(form, file).casefold() for file in files}) == len(distinct)
    assert all(len(file.encode()) <= 255 and file.endswith(".flac") for file in files)
    assert not any(file.casefold().startswith("con.") for file in files), "a device of Windows"


def test_names_that_need_no_change_are_kept() -> None:
    found = file_names([stem_of(name) for name in ("a?", "a*", "A_", "b", "con", "b-2")], "street.wav")
    assert found == [f"street-{name}.flac" for name in ("a_", "a_-2", "A_-3", "b", "con", "b-2")]


def test_an_archive_and_downloads_have_the_same_distinct_names(service: Service) -> None:
    wanted = ["a?", "a*", "🐦" * 63 + "x", "🐦" * 63 + "y"]
    job = service.separate()
    service.finish(job["id"], {name: name.encode() for name in wanted})
    done = service.client.get(job["url"]).json()
    with zipfile.ZipFile(io.BytesIO(service.client.get(done["archive_url"]).content)) as archive:
        assert [archive.read(name).decode() for name in archive.namelist()] == wanted
        assert len(set(archive.namelist())) == 4
        for stem, name in zip(done["stems"], archive.namelist(), strict=True):
            separator = "&" if "?" in stem["url"] else "?"
            answer = service.client.get(f"{stem['url']}{separator}download=1")
            assert answer.headers["content-disposition"] == attachment(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a b;c='d'.flac", """attachment; filename="a b;c='d'.flac\""""),
        ("dög.flac", """attachment; filename="d_g.flac"; filename*=UTF-8''d%C3%B6g.flac"""),
        ('50%"\\.flac', """attachment; filename="50___.flac"; filename*=UTF-8''50%25%22%5C.flac"""),
    ],
)
def test_a_download_is_named_also_for_clients_that_know_plain_names_alone(name: str, told: str) -> None:
    assert attachment(name) == told

"""Names of targets for requests and for commands: one rule, two packages that do not import each other."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.records.separations import StemRecord
from app.separations import names
from app.separations.file_names import file_name
from models.separation.stems import check_names
from models.separation.stems import file_name as file_of_stem
from tests.app.separations.test_names import VALID

INVALID = ["", " ", "a ", "a/b", "a\\b", ".", "..", "x" * 65, "a\nb", "a\x00", "\u202egod", "a\u200b"]


@pytest.mark.parametrize("name", VALID)
def test_printable_text_is_a_name_for_requests_and_for_commands(name: str) -> None:
    assert names.normalize(name) == name
    check_names([name])


@pytest.mark.parametrize("name", INVALID)
def test_what_could_not_be_a_file_is_refused_by_both(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        names.normalize(name)
    with pytest.raises(ValueError, match="name"):
        check_names([name])


@pytest.mark.parametrize("source", ["street", "", "s" * 300, "鳥" * 100, "a.b", os.fsdecode(b"Bj\xf6rk")])
@pytest.mark.parametrize("name", ["dog", "🐦" * 64])
def test_commands_name_files_after_the_recording_as_far_as_there_is_room(source: str, name: str) -> None:
    own = file_of_stem(name, "flac")
    complete = file_of_stem(name, "flac", source)
    before = complete.removesuffix(own).removesuffix("-")
    assert complete.endswith(own) and source.startswith(before) and len(os.fsencode(complete)) <= 255
    assert before == source or len(os.fsencode(f"{source[: len(before) + 1]}-{own}")) > 255


@given(st.text(max_size=70))
def test_requests_and_commands_have_the_same_rule(name: str) -> None:
    name = unicodedata.normalize("NFC", name)

    def is_accepted(check: object) -> bool:
        try:
            check(name)  # pyright: ignore[reportCallIssue]
        except ValueError:
            return False
        return True

    if names.fold(name) != "residual":
        assert is_accepted(names.normalize) == is_accepted(lambda text: check_names([text]))


@given(st.lists(st.sampled_from(VALID), min_size=1, max_size=3), st.text(max_size=300))
def test_file_names_fit_into_255_bytes(parts: list[str], source: str) -> None:
    name = names.normalize(" ".join(parts)[:64].strip())
    stem = StemRecord(name=name, key="x/0.flac", content_type="audio/flac", bytes=1, sha256="", peak=0, loudness=None)
    for file in (file_name(stem, source or None), file_of_stem(name, "flac")):
        assert len(file.encode()) <= 255 and file.endswith(".flac") and "/" not in file


def test_long_names_that_differ_at_their_end_have_different_files() -> None:
    assert len({file_of_stem("🐦" * 63 + end, "flac") for end in "鳥語"}) == 2

"""Recordings that a command is given, as files, folders and globs, and the places of what is made of them."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from models.many.earlier_stems import without_earlier_stems
from models.media.suffixes import is_recording


class NothingFound(ValueError):
    """An argument names no recording."""


@dataclass(frozen=True)
class Input:
    """A recording. folder: where its outputs belong, below the output folder; name: that they begin with."""

    path: Path
    folder: PurePath
    name: str


def is_one(arguments: Sequence[str]) -> bool:
    """Return whether the arguments are one file, not many."""
    return len(arguments) == 1 and Path(arguments[0]).is_file()


def find(arguments: Sequence[str], output: Path) -> list[Input]:
    """Return the recordings of files, folders and globs, each once, in order.

    A folder keeps its tree, without its own name if it is the only argument; what a glob finds keeps its tree below
    the part that has no wildcard. Hidden files, and what is in the folder `output`, are left out, and of a folder the
    stems of earlier separations. Of recordings that differ in their suffix alone, the outputs begin with the whole file
    name. Raises NothingFound; ValueError for recordings that would have the same outputs.
    """
    found: dict[Path, Input] = {}
    for argument in arguments:
        named = list(_find(argument, len(arguments) > 1, output.absolute()))
        if not named:
            raise NothingFound(f"{argument}: there is no such file, nor a recording in such a folder")
        for path, folder in named:
            found.setdefault(path.resolve(), Input(path, folder, path.stem))
    return _unambiguous(list(found.values()))


def _find(argument: str, several: bool, output: Path) -> Iterator[tuple[Path, PurePath]]:
    path = Path(argument)
    if path.is_file():
        yield path, PurePath()
        return
    if path.is_dir():
        top = path.absolute().parent if several and path.name not in ("", "..") else path.absolute()
        found = sorted(each for each in path.rglob("*") if is_recording(each.name))
        files = without_earlier_stems(path, found)
    elif argument == "-" or path.exists():
        raise NothingFound(f"{argument}: recordings are files; write what comes through a pipe into one first")
    else:
        top = Path(*_before_wildcard(path)).absolute()
        files = sorted(Path(each) for each in glob.glob(argument, recursive=True))  # noqa: PTH207 - of any root
    for file in files:
        whole = file.absolute()
        below = whole.relative_to(top) if whole.is_relative_to(top) else PurePath(whole.name)
        hidden = any(part.startswith(".") for part in below.parts)
        if file.is_file() and not hidden and not whole.is_relative_to(output):
            yield file, below.parent


def _before_wildcard(path: Path) -> Iterator[str]:
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _unambiguous(inputs: list[Input]) -> list[Input]:
    # Folded, since some file systems take Dog.wav and dog.wav for the same.
    def place(each: Input) -> tuple[PurePath, str]:
        return each.folder, each.name.casefold()

    counted = Counter(map(place, inputs))
    named = [each if counted[place(each)] == 1 else replace(each, name=each.path.name) for each in inputs]
    counted = Counter(map(place, named))
    twice = [each for each in named if counted[place(each)] > 1]
    if twice:
        raise ValueError(
            f"{twice[0].path} and {twice[1].path} would have the same outputs: give them in two commands, with two"
            " output folders"
        )
    return named

"""The recipe of training examples: how often a mixture, a source or a query is of which kind."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from models.runs.clip_embeddings import VERSIONS

# Sounds that last, with all below them: what people record speech in.
LASTING = (
    *("Wind", "Thunderstorm", "Water", "Fire", "Engine", "Vehicle", "Music", "Chatter", "Crowd", "Noise", "Mechanisms"),
    *("Hubbub, speech noise, speech babble", "Applause", "Cheering", "Insect", "Mechanical fan", "Air conditioning"),
)


@dataclass(frozen=True)
class Recipe:
    """Parameters of the examples; all shares are probabilities.

    mixtures: mixtures a batch, of all processes together, each with `queries` queries.
    interference_db: a source's energy relative to the first one's, over the whole segment.
    unlabelled: share of sources that are unlabelled clips, if the corpus has any.
    band: share of mixtures that are three or four instruments playing at once.
    songs: share of mixtures that are two to all parts of one rendered song, in time, near their levels in it.
    anchored: share of sources cut at their anchor rather than at a loud place.
    wanted: classes of which the first source is in `wanted_share` of mixtures, with a semicolon between them; of
        several, the first one in three quarters of these.
    lasting: how many times as often as by `class_power` a class of LASTING sounds is interference.
    louder_of: number of random places, of which a clip longer than a segment is cut at the loudest.
    query_versions: number of cached versions of an example to draw from; the first is the unchanged clip.
    query_dropout: share of queries with a tenth of their values set to zero.
    """

    mixtures: int = 16
    queries: int = 2
    seconds: float = 2.0
    interference_db: tuple[float, float] = (-8.0, 8.0)
    third_source: float = 0.2
    single_source: float = 0.04
    absent: float = 0.15
    hard_negative: float = 0.1
    other_group: float = 0.65
    anchored: float = 0.0
    layered: float = 0.1
    varied_speed: float = 0.8
    room: float = 0.1
    filtered: float = 0.7
    band: float = 0.0
    songs: float = 0.0
    unlabelled: float = 0.3
    class_power: float = 0.35  # classes are drawn by (number of groups) ** power
    wanted: str = ""
    wanted_share: float = 0.0
    lasting: float = 1.0
    louder_of: int = 2
    query_versions: int = VERSIONS
    query_dropout: float = 0.5


def with_batch(recipe: Recipe, mixtures_a_batch: int | None) -> Recipe:
    """Return the recipe with another batch size."""
    return replace(recipe, mixtures=mixtures_a_batch) if mixtures_a_batch else recipe


def with_changes(recipe: Recipe, changes: list[str]) -> Recipe:
    """Return the recipe with changed fields, such as ["room=0.2", "interference_db=-5:5"]. Raises ValueError."""
    known = asdict(recipe)
    found: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise ValueError(f"a recipe has no {name!r}, but {', '.join(known)}")
        kind = type(known[name])
        try:
            found[name] = tuple(float(part) for part in text.split(":")) if kind is tuple else kind(text)
        except ValueError:
            raise ValueError(f"{change}: {text!r} is not such as {known[name]}") from None
        if kind is tuple and len(found[name]) != len(known[name]):
            raise ValueError(f"{change}: {len(known[name])} numbers with a colon between them")
    return replace(recipe, **found)

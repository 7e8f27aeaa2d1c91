"""Words of a text: which of them say little or nothing, what stands between two sounds, and how a word is compared with
others, by its stem, its plural and its typos.

As `matching` beside it, this file stands in `app/labels/` and in `models/queries/`.
"""

import re
import unicodedata

from rapidfuzz.distance import OSA

# Words in English, German, French and Spanish, without accents.
_STOP_WORDS = """
a an the this that these those my your his her their our some any it its is are was be being to of for as at from i we
you want need please only just give me hear isolate extract separate get find keep nothing but very and s t
der die das den dem des ein eine einen einem einer mein meine von vom zum zur nur bitte
le la les l un une du de d mon ma mes qui c est ce seulement
el los las lo una unos unas del mi mis que es solo por favor
"""
_LIGHT_WORDS = """
sound sounds noise noises audio recording track clip sample effect song music melody part line group bunch chord chords
note notes man woman men women male female guy lady boy girl kid kids child children toddler teenager wife husband mum
mom dad mother father person people someone somebody human adult loud loudly quiet quietly soft softly heavy heavily
deep clear clean faint muffled weird strange strong annoying gently hard high low fast slow big small little old young
angry happy single several many lot two three main lead solo background constant continuous continuously long short
repeatedly distant distantly far away near close nearby past overhead outside inside off on out up down by being playing
play plays played going runs making make makes passing moving coming flying flies approaching approaches falling falls
driving drives blowing blows hit hits hitting
gerausch gerausche klang ton laut mann frau leute bruit bruits son sons fort homme femme gens
ruido ruidos sonido sonidos fuerte hombre mujer gente
"""
_PREPOSITION_WORDS = """
in on at near from behind through under outside inside against for into during around across onto next
im auf am bei hinter dans sur sous en sobre desde
"""
STOP = frozenset(_STOP_WORDS.split())
LIGHT = frozenset(_LIGHT_WORDS.split())
PREPOSITIONS = frozenset(_PREPOSITION_WORDS.split())
NEGATION = re.compile(
    r"\b(without|not|no|never|except|excluding|exclude|minus|remove|removed|removing|delete|mute|suppress|eliminate|"
    r"everything but|all but|anything but|get rid|rid of|take out|cut out|leave out|filter out|other than|apart from|"
    r"ohne|nicht|kein|keine|keinen|ausser|entferne|entfernen|sans|pas|sauf|aucun|aucune|enlever|supprimer|"
    r"sin|excepto|menos|salvo|quitar|eliminar)\b"
)
BETWEEN_SOUNDS = re.compile(
    r"[,;+/|]|\b(?:and|or|plus|und|oder|et|ou|y|with|while|over|then|followed by|mit|avec|con|pendant que|mientras)\b"
)
SURELY_SEVERAL = re.compile(r"[,;+/|]|\b(?:and|or|plus|und|oder|et|ou|y)\b")


def slug(text: str) -> str:
    """`A dog, barking` -> a-dog-barking: a target's name, of at most 64 letters, digits and hyphens."""
    return "-".join(re.findall("[a-z0-9]+", plain(text)))[:64].strip("-")


def is_typo(one: str, other: str) -> bool:
    """Return whether two words differ by one letter or, if they are long, by two; typos spare the first letter."""
    shorter, longer = sorted((len(one), len(other)))
    return one[:1] == other[:1] and shorter >= 4 and longer >= 5 and edits(one, other) is not None


def edits(one: str, other: str) -> int | None:
    """Return the number of letters by which two texts differ, if it is that of a typo: one, or two of a long text."""
    shorter = min(len(one), len(other))
    allowed = 2 if shorter >= 8 else 1
    distance = OSA.distance(one, other, score_cutoff=allowed)
    return distance if shorter >= 3 and distance <= allowed else None


def fold(text: str) -> str:
    """Return a text without regard to case, underscores and the width of spaces."""
    return " ".join(text.casefold().replace("_", " ").split())


def plain(text: str) -> str:
    """Return a text in lower case, without accents, with `and` for `&` and `not` for `n't`."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter)).replace("&", " and ")
    return bare.replace("\u2019", "'").replace("n't", " not").replace("dont ", "do not ").replace("'s", "")


def tokens(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"[^\W_]+", plain(text))


def content(text: str) -> list[str]:
    """Return the words of a text that are not stop words."""
    return [token for token in tokens(text) if token not in STOP]


def singular(text: str) -> str:
    """Return a text's words in their order, without stop words and plurals: `the barking dogs` -> barking dog."""
    return " ".join(word[:-1] if word.endswith("s") and not word.endswith("ss") else word for word in content(text))


def stems(text: str) -> tuple[str, ...]:
    """Return the distinct stems of a text's words, without stop words: `barking dogs` -> bark, dog."""
    return tuple(dict.fromkeys(map(stem, content(text))))


def stem(word: str) -> str:
    """Return what a word has in common with its plural and its forms in -ing and -ed: `barking` -> bark."""
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


LIGHT_STEMS = frozenset(map(stem, LIGHT))

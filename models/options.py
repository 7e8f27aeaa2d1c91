"""The options of a separation: what its result depends on, beside the recording and the queries."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from models.formats import check_bit_depth

# Of a detection: classes that are listed, and the probability that an event must reach.
TOP = 10
THRESHOLD = 0.2


Quality = Literal["standard", "high"]
# Speeds at which the separator sees each window; the estimates' mean is the stem (`models.separation.speeds`). Chosen
# on the half `choose` of the reporting mixtures: the card has what other means gain.
SPEEDS: dict[Quality, tuple[Fraction, ...]] = {
    "standard": (Fraction(1),),
    "high": (Fraction(1), Fraction(50, 47), Fraction(50, 53)),
}


@dataclass(frozen=True)
class SeparationOptions:
    """How a recording is separated and how its stems are written.

    window, context, overlap: seconds. A window is what the separator sees at once; `context` at each of its sides is
        computed and discarded, since estimates are wrong near a window's edges; `overlap` is cross-faded with the next
        window. Longer windows cost memory and gain nothing: networks are trained on 2 s. The last is at most a tenth
        longer. Without context and overlap, seams are audible.
    joint: refine all targets together with a Wiener filter. Off: it costs time, and helps only where targets overlap.
    exhaustive: with `joint`, the targets are all that the recording holds, so nothing is reserved for a residual. Off:
        few recordings hold nothing but their targets.
    gate: attenuate stems of targets that are not in the recording. On: a separator leaks a little of everything.
    quality: "high" is the mean of estimates of the mixture at several speeds (`SPEEDS`), and takes as many times as
        long. "standard": one.
    batch: how many masks are computed at once. None: as many as fit the device (`Engine`), which is fastest.
    format: a name of `models.formats.FORMATS`. flac: lossless, and half the size of wav.
    bit_depth: 16, 24 or 32, where the format has it. None: the format's default.
    residual: also write what the targets leave of the mixture.

    Raises ValueError for lengths or a batch that make no sense, FormatUnsupported for the format or its bit depth.
    Whether the window has room for its context and overlap depends on the model: `Windows.of` checks it.
    """

    window: float = 10.0
    context: float = 0.5
    overlap: float = 0.25
    joint: bool = False
    exhaustive: bool = False
    gate: bool = True
    quality: Quality = "standard"
    batch: int | None = None
    format: str = "flac"
    bit_depth: int | None = None
    residual: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.window < float("inf"):
            raise ValueError(f"a window must be longer than 0 s, not {self.window:g} s")
        for name in ("context", "overlap"):
            if not 0 <= (seconds := getattr(self, name)) < float("inf"):
                raise ValueError(f"{name} must be 0 s or longer, not {seconds:g} s")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"a batch holds at least one mask, not {self.batch}")
        if self.quality not in SPEEDS:
            raise ValueError(f"quality is one of {', '.join(get_args(Quality))}, not {self.quality!r}")
        check_bit_depth(self.format, self.bit_depth)


DEFAULT_OPTIONS = SeparationOptions()


@dataclass(frozen=True)
class Auto:
    """Targets that the recording itself gives: at most `most` sounds, detected with a probability of `threshold`."""

    most: int = 8
    threshold: float = 0.3


DEFAULT_AUTO = Auto()

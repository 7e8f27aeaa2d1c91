"""Plot of a detection, and pictures as small files."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from models.detection import Detection
from models.labels import classes


def save_small(figure: Figure, path: Path, dpi: int) -> None:
    """Write a picture; a PNG with 256 colours, a third to a half of the usual size, since models ship with theirs."""
    figure.savefig(path, dpi=dpi)
    if path.suffix == ".png":
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def draw_detection(found: Detection, path: Path, title: str = "") -> None:
    """Draw the tags' curves over time with their events as bars above; the format follows from `path`."""
    rows = {tag.mid: row for row, tag in enumerate(reversed(found.tags))}
    columns = {label.mid: label.index for label in classes()}
    figure = Figure(figsize=(10, 1.2 + 0.35 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves = [found.framewise[:, columns[mid]].numpy() for mid in rows]
    extent = (0, len(found.framewise) * found.frame_seconds, -0.5, len(rows) - 0.5)
    image = axes.imshow(
        curves, aspect="auto", origin="lower", extent=extent, vmin=0, vmax=1, cmap="Blues", interpolation="nearest"
    )
    drawn = [event for event in found.events if event.mid in rows]
    # One collection: hours of sound have ten thousands of events, and a line of its own for each takes gigabytes.
    axes.hlines(
        [rows[event.mid] + 0.4 for event in drawn],
        [event.start for event in drawn],
        [event.end for event in drawn],
        color="tab:red",
        linewidth=2,
    )
    axes.set_yticks(range(len(rows)), [tag.label for tag in reversed(found.tags)])
    axes.set_xlim(0, found.duration)
    axes.set_xlabel("seconds")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="probability")
    figure.savefig(path, dpi=120)

"""General MIDI programs, in the classes that the corpus gives them."""

OTHER = "other"  # programs without a clear class: music boxes, effects
DRUM_KIT = "Drum kit"
DRUMS = 9  # the channel of percussion, counted from 0

# Programs from 0, as sound banks number them.
PROGRAMS: dict[str, tuple[int, ...]] = {
    "Piano": (0, 1, 2, 3),
    "Electric piano": (4, 5),
    "Harpsichord": (6,),
    "Glockenspiel": (8, 9),
    "Vibraphone": (11,),
    "Marimba, xylophone": (12, 13),
    "Tubular bells": (14,),
    "Hammond organ": (16, 17, 18),
    "Organ": (19, 20),
    "Accordion": (21, 23),
    "Harmonica": (22,),
    "Acoustic guitar": (24, 25),
    "Electric guitar": (26, 27, 28, 29, 30, 31),
    "Double bass": (32, 43),
    "Bass guitar": (33, 34, 35, 36, 37),
    "Violin, fiddle": (40, 110),
    "Cello": (42,),
    "String section": (44, 48, 49),
    "Pizzicato": (45,),
    "Harp": (46,),
    "Timpani": (47,),
    "Choir": (52, 53),
    "Orchestra": (55,),
    "Trumpet": (56, 59),
    "Trombone": (57,),
    "Brass instrument": (58, 61),
    "French horn": (60,),
    "Saxophone": (64, 65, 66, 67),
    "Oboe": (68,),
    "Bassoon": (70,),
    "Clarinet": (71,),
    "Flute": (72, 73, 75),
    "Synthesizer": (38, 39, 50, 51, 54, 62, 63, *range(80, 104)),
    "Sitar": (104,),
    "Steelpan": (114,),
    "Wood block": (115,),
    "Drum": (116, 117, 118),
}
_LABELS = {program: label for label, programs in PROGRAMS.items() for program in programs}


def label_of(channel: int, program: int) -> str:
    """Return the class of what a channel plays with a program; OTHER if there is none."""
    return DRUM_KIT if channel == DRUMS else _LABELS.get(program, OTHER)

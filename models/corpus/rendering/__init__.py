"""Bands for training, rendered part by part from scores: the parts of a song are in time and in key, and are its sum.

`song_writer` makes songs by rule, `scores` reads MIDI files; `synthesizer` renders the parts of an excerpt by
FluidSynth, `studio` puts them in a room, to their levels and through a compressor, `songs` makes clips of them and
`singing` adds vocals. Clips are mono, so nothing is panned.
"""

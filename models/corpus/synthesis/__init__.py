"""Everyday sounds made by rule, for training: sirens, alarms, rain, engines, birds.

`elements` are what they are made of: shaped noise, tones whose pitch moves, struck bodies, grains at random times,
resonances. `warnings`, `nature`, `machines` and `animals` draw the parameters of one source (a siren, a dog) and play
it; `catalogue` lists them by class; `sounds` makes clips of them. Each draw is another source, so they never end.

A class belongs here if YAMNet has it, or a class above or below it, among its first ten of 521 for half of the sources
(`tests/models/test_corpus_synthesis.py`); fires, engines, hum and barks come close. Footsteps, applause, brooks,
keyboards and cats made in these ways do not.
"""

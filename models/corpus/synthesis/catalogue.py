"""The classes that are synthesised, and what makes them."""

from collections.abc import Callable

from models.corpus.synthesis import animals, machines, nature, warnings
from models.corpus.synthesis.elements import Random, Sound

Maker = Callable[[int, Random], Sound]

CATALOGUE: tuple[tuple[str, Maker], ...] = (
    ("Siren", warnings.siren),
    ("Civil defense siren", warnings.civil_defense_siren),
    ("Vehicle horn, car horn, honking", warnings.vehicle_horn),
    ("Train horn", warnings.train_horn),
    ("Beep, bleep", warnings.beeps),
    ("Smoke detector, smoke alarm", warnings.smoke_alarm),
    ("Alarm clock", warnings.alarm_clock),
    ("Telephone bell ringing", warnings.telephone),
    ("Church bell", warnings.church_bell),
    ("Bicycle bell", warnings.bicycle_bell),
    ("Rain", nature.rain),
    ("Wind", nature.wind),
    ("Waterfall", nature.waterfall),
    ("Waves, surf", nature.waves),
    ("Fire", nature.fire),
    ("Engine", machines.engine),
    ("Motorcycle", machines.motorcycle),
    ("Chainsaw", machines.chainsaw),
    ("Helicopter", machines.helicopter),
    ("Aircraft", machines.aircraft),
    ("Train", machines.train),
    ("Drill", machines.drill),
    ("Mains hum", machines.mains_hum),
    ("Tick-tock", machines.clock),
    ("Bird vocalization, bird call, bird song", animals.bird),
    ("Pigeon, dove", animals.pigeon),
    ("Crow", animals.crow),
    ("Bark", animals.dog),
    ("Moo", animals.cattle),
    ("Cricket", animals.cricket),
)

"""The sizes of a detector that learns in seconds."""

from models.networks.htsat import HyperParameters

DETECTOR = HyperParameters(
    patch=(8, 2), runs=1, channels=8, depths=(1, 2), heads=(2, 2), window_size=800, merge_time=False, level=0.08
)

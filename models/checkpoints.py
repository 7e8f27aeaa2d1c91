"""Loading and saving of bundles: a detector and a separator with their configuration, shipped or in a folder.

A bundle is `model.safetensors` (`detector.*`, `separator.*`, `class_embeddings`, `prior.*`) and `config.json`, which
describes the networks and holds the other file's SHA-256. `authors.py` reads the authors' two files.
"""

import hashlib
import json
import mmap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.authors import load_authors
from models.errors import CheckpointInvalid
from models.queries.plda import PLDAPrior
from models.queries.query import PAPER_RULES

__all__ = ["PRESETS", "Bundle", "authors_bundle", "load", "load_authors", "model_names", "save", "write"]

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
REQUIRED = {
    "name": str,
    "version": str,
    "preset": str,
    "detector": dict,
    "separator": dict,
    "query": dict,
    "sha256": str,
}
PRIOR = "prior."
TYPES = {  # of safetensors
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
}
SCALE = ".scale"  # of an int8 matrix M (rows, columns), beside it: the row r is M[r] * scale[r]
LARGE_MATRIX = 1 << 16  # entries
# Smaller entries are read: each one mapped keeps a file open.
MAPPED_BYTES = 1 << 22


@dataclass
class Bundle:
    """A detector and a separator trained together, float32, in eval mode, and what was fitted beside them.

    config: as in `config.json`; class_embeddings: AudioSet's class identifier (mid) to its query (D,);
    presence: the fitted presence rule, or None; prior: the PLDA prior that corrects examples, or None; predicted: the
    classes whose query is a prediction from the detector's classifier, not of clips (`models.runs.class_queries`).
    """

    name: str
    version: str
    detector: Any
    separator: Any
    config: dict[str, Any]
    class_embeddings: dict[str, Tensor] = field(default_factory=dict)
    presence: dict[str, Any] | None = None
    prior: PLDAPrior | None = None
    predicted: frozenset[str] = frozenset()

    @property
    def model_id(self) -> str:
        """Name and version, such as "base@1"."""
        return f"{self.name}@{self.version}"

    @property
    def queries_of(self) -> list[str]:
        """The earlier versions whose queries this one understands: their query encoder is the same."""
        return self.config.get("queries_of", [])

    @property
    def clip_embeddings(self) -> dict[str, Tensor]:
        """The class embeddings that are of clips: presence is fitted with these."""
        return {mid: vector for mid, vector in self.class_embeddings.items() if mid not in self.predicted}


def load(source: str | Path) -> Bundle:
    """Load a shipped bundle by its name ("base"), or the one in a folder.

    Raises CheckpointInvalid, which says what is missing, damaged or of a wrong shape.
    """
    if str(source) in model_names():
        return read(SHIPPED / f"{source}.safetensors", SHIPPED / f"{source}.json")
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointInvalid(
            f"{source}: neither a folder nor one of the shipped models ({', '.join(model_names())})"
        )
    if (folder / "run.json").exists() and not (folder / CONFIG).exists():
        raise CheckpointInvalid(f"{source} is a training's run, not a model: make one of it with `ship --run {source}`")
    return read(folder / WEIGHTS, folder / CONFIG)


def save(bundle: Bundle, folder: str | Path, half: bool = False) -> None:
    """Write a bundle to a folder, created if needed. half: as `write` does."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write(bundle, Path(folder) / WEIGHTS, Path(folder) / CONFIG, half)


def model_names() -> list[str]:
    """Return the names of the bundles shipped with the package."""
    return sorted(config.stem for config in SHIPPED.glob("*.json") if config.with_suffix(".safetensors").is_file())


def authors_bundle(detector: str | Path | None = None, separator: str | Path | None = None) -> Bundle:
    """Return the authors' files as a bundle of the preset `paper`. Raises CheckpointInvalid without a separator."""
    if separator is None:
        raise CheckpointInvalid("the detector's file alone cannot separate: give the separator's file too")
    htsat, unet = load_authors(detector, separator)
    assert unet is not None  # noqa: S101  there is a separator's file
    config = {
        "name": "paper",
        "version": "1",
        "preset": "paper",
        "detector": asdict(htsat.hyper),
        "separator": asdict(unet.hyper),
        "query": asdict(PAPER_RULES),
    }
    return Bundle("paper", "1", htsat, unet, config)


# --- presets: how a config becomes networks ---


def build_paper(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    from models.networks import htsat, unet

    # Skip the initialisation: 370 million random numbers would take seconds, and are overwritten.
    with torch.device("meta"):
        detector = htsat.HTSAT(htsat.HyperParameters(**as_tuples(config["detector"])))
        return detector, unet.UNet(unet.HyperParameters(**as_tuples(config["separator"])))


def build_base(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    from models.networks.resunet import ResUNet
    from models.networks.yamnet import Yamnet

    detector = Yamnet(**config["detector"])
    return detector, ResUNet(query_encoder=detector, **as_tuples(config["separator"]))


def build_transformer(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    from models.networks import htsat
    from models.networks.resunet import ResUNet

    detector = htsat.HTSAT(htsat.HyperParameters(**as_tuples(config["detector"])))
    return detector, ResUNet(query_encoder=detector, **as_tuples(config["separator"]))


PRESETS: dict[str, Callable[[dict[str, Any]], tuple[nn.Module, nn.Module]]] = {
    "paper": build_paper,
    "base": build_base,
    "transformer": build_transformer,
}


def as_tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with lists, which is what JSON has, turned into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


# --- files ---


def read(weights: Path, config_path: Path) -> Bundle:
    config = read_config(config_path)
    state = read_weights(weights, config["sha256"])
    try:
        detector, separator = PRESETS[config["preset"]](config)
    except KeyError as fault:
        known = ", ".join(PRESETS)
        raise CheckpointInvalid(f"{config_path}: unknown preset {config['preset']!r}, not one of {known}") from fault
    except (TypeError, ValueError) as fault:
        raise CheckpointInvalid(f"{config_path}: no network can be built from it: {fault}") from fault
    embeddings = state.pop("class_embeddings", torch.zeros(0, 0)).float()
    mids = config.get("class_embeddings", [])
    if len(mids) != len(embeddings):
        raise CheckpointInvalid(f"{weights}: {len(embeddings)} class embeddings for {len(mids)} classes")
    prior = {name.removeprefix(PRIOR): state.pop(name) for name in list(state) if name.startswith(PRIOR)}
    try:
        known = PLDAPrior.of(prior) if prior else None
    except (TypeError, ValueError) as fault:
        raise CheckpointInvalid(f"{weights}: the PLDA prior is invalid: {fault}") from fault
    fill(detector, "detector.", state, weights)
    fill(separator, "separator.", state, weights)
    if state:
        raise CheckpointInvalid(f"{weights}: entry {next(iter(state))!r} belongs to neither network")
    return Bundle(
        config["name"],
        config["version"],
        detector.eval(),
        separator.eval(),
        config,
        dict(zip(mids, embeddings, strict=True)),
        config.get("presence"),
        known,
        frozenset(config.get("predicted", [])),
    )


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except OSError as fault:
        raise CheckpointInvalid(f"{path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise CheckpointInvalid(f"{path}: not JSON: {fault}") from fault
    if not isinstance(config, dict):
        raise CheckpointInvalid(f"{path}: not a JSON object")
    for key, kind in REQUIRED.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointInvalid(f"{path}: {key!r} is missing or not a {kind.__name__}")
    return config


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        found = digest(path)
        if found != sha256:
            raise CheckpointInvalid(f"{path}: its SHA-256 is {found}, and the config says {sha256}")
        return read_entries(path)
    except OSError as fault:
        raise CheckpointInvalid(f"{path}: {fault.strerror}") from fault
    except SafetensorError as fault:
        raise CheckpointInvalid(f"{path}: not a safetensors file: {fault}") from fault


def read_entries(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, large ones mapped, each by itself.

    So the memory of an entry is given back when its layer is packed. `safetensors.torch.load_file` maps the file as
    one, and all of it stays as long as one entry does.

    Raises SafetensorError, OSError.
    """
    with safe_open(path, "pt"):  # verifies the header: all entries lie in the file, and have their shapes' sizes
        pass
    entries = {}
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in TYPES:
                raise SafetensorError(f"entry {name!r} is of type {entry['dtype']}")
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            entries[name] = read_entry(file, begin, end, TYPES[entry["dtype"]]).view(entry["shape"])
    return entries


def read_entry(file: BinaryIO, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """Return the flat tensor between two places of a file; what is written to it stays in memory."""
    if begin == end:
        return torch.empty(0, dtype=dtype)
    if end - begin < MAPPED_BYTES:
        file.seek(begin)
        return torch.frombuffer(bytearray(file.read(end - begin)), dtype=dtype)
    before = begin % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(file.fileno(), end - begin + before, access=mmap.ACCESS_COPY, offset=begin - before)
    return torch.frombuffer(mapped, dtype=dtype, offset=before)


def fill(network: nn.Module, prefix: str, state: dict[str, Tensor], path: Path) -> None:
    """Move the entries under `prefix` from `state` into the network, converted to its types."""
    entries = {}
    for name, wanted in network.state_dict().items():
        entry = state.pop(prefix + name, None)
        if entry is None:
            raise CheckpointInvalid(f"{path}: entry {prefix + name!r} is missing")
        scale = state.pop(prefix + name + SCALE, None) if entry.dtype == torch.int8 else None
        if entry.shape != wanted.shape:
            fault = f"has shape {tuple(entry.shape)} instead of {tuple(wanted.shape)}"
            raise CheckpointInvalid(f"{path}: entry {prefix + name!r} {fault}")
        if entry.dtype == torch.int8:
            if scale is None or entry.ndim != 2 or scale.shape != entry.shape[:1]:
                raise CheckpointInvalid(f"{path}: entry {prefix + name!r} is int8 without a scale for each row")
            entry = entry.float() * scale.float()[:, None]
        entries[name] = entry.to(wanted.dtype)
    network.load_state_dict(entries, assign=True)


def write(bundle: Bundle, weights: Path, config_path: Path, half: bool = False) -> None:
    """Write a bundle's two files, the config last, so that no reader finds a config without its weights.

    half: convolutions, embeddings and the detector's matrices as float16, 60 dB from float32; large matrices of the
    separator as int8 with a scale for each row, 40 dB from it.
    """
    state = {f"detector.{name}": entry for name, entry in bundle.detector.state_dict().items()}
    for name, entry in bundle.separator.state_dict().items():
        is_large = entry.ndim == 2 and entry.numel() >= LARGE_MATRIX
        state |= to_int8(f"separator.{name}", entry) if half and is_large else {f"separator.{name}": entry}
    if bundle.class_embeddings:
        state["class_embeddings"] = torch.stack(list(bundle.class_embeddings.values()))
    if bundle.prior is not None:
        state |= {PRIOR + name: entry for name, entry in bundle.prior.state().items()}
    state = {name: to_storage(entry, half) for name, entry in state.items()}
    config = {
        key: value for key, value in bundle.config.items() if key not in ("class_embeddings", "predicted", "presence")
    }
    config |= {"name": bundle.name, "version": bundle.version, "class_embeddings": list(bundle.class_embeddings)}
    if bundle.predicted:
        config["predicted"] = sorted(bundle.predicted)
    if bundle.presence is not None:
        config["presence"] = bundle.presence

    partial = weights.with_suffix(".partial")
    try:
        save_file(state, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # safetensors creates files that only their owner can read
        config["sha256"] = digest(partial)
        config_path.unlink(missing_ok=True)
        partial.replace(weights)
    finally:
        partial.unlink(missing_ok=True)
    config_path.write_text(json.dumps(config, indent=2) + "\n")


def to_storage(entry: Tensor, half: bool) -> Tensor:
    entry = entry.detach().cpu()
    # Vectors stay float32: they are few, and variances among them may exceed float16's range.
    if half and entry.is_floating_point() and entry.ndim > 1:
        entry = entry.half()
        if not entry.isfinite().all():
            raise ValueError("weights exceed float16's range: save them in float32")
    return entry.contiguous()


def to_int8(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """Return the entries of a matrix (rows, columns) in int8, and of its rows' scales."""
    if not matrix.isfinite().all():
        raise ValueError(f"{name} is not finite")
    scale = (matrix.abs().amax(1) / 127).clamp(min=1e-12)
    return {name: (matrix / scale[:, None]).round().to(torch.int8), name + SCALE: scale}


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

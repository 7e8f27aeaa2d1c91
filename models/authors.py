"""Reader of the paper's two published checkpoints that executes no code from them.

They are Lightning checkpoints: a zip archive whose `data.pkl` refers to tensors stored beside it. A pickle can call
any function, so this unpickler rebuilds tensors and plain containers only; every other name in it becomes an inert
object.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.errors import CheckpointInvalid
from models.networks.htsat import HTSAT
from models.networks.unet import UNet

PICKLE_BYTES = 64 << 20  # largest `data.pkl` accepted; the published files' have less than 1 MiB


def load_authors(detector: str | Path | None = None, separator: str | Path | None = None) -> tuple[HTSAT, UNet | None]:
    """Return the networks of `htsat_audioset_2048d.ckpt` and `zeroshot_asp_full.ckpt`, float32, in eval mode.

    The separator's file also holds a detector, which is used when no other is given. Without a separator's file the
    second network is None. Raises CheckpointInvalid, naming the first entry that is missing, mis-shaped or unknown.
    """
    if detector is None and separator is None:
        raise ValueError("load_authors needs the detector's file, the separator's, or both")
    with torch.device("meta"):  # skip the initialisation: the files overwrite everything
        htsat, unet = HTSAT(), UNet()
    if detector is not None:
        with Archive(Path(detector)) as archive:
            archive.fill(htsat, detector_names(htsat), UNUSED)
    if separator is None:
        return htsat.eval(), None
    with Archive(Path(separator)) as archive:
        inside = {f"at_model.{name}": ours for name, ours in detector_names(htsat).items()}
        unused = {f"at_model.{name}": shape for name, shape in UNUSED.items()}
        beside = separator_names(unet)
        if detector is None:
            archive.fill(htsat, inside, unused, others=beside)
        archive.fill(unet, beside, {}, others=[*inside, *unused])
    return htsat.eval(), unet.eval()


# --- names ---

# Ours on the left, theirs on the right; applied one after another.
DETECTOR_NAMES = [
    (r"^band_norm\.", "bn0."),
    (r"^patches\.", "patch_embed.proj."),
    (r"^patch_norm\.", "patch_embed.norm."),
    (r"^stages\.", "layers."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.attention\.projection\.", ".attn.proj."),
    (r"\.attention\.bias_table$", ".attn.relative_position_bias_table"),
    (r"\.attention\.", ".attn."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"\.merge\.linear\.", ".downsample.reduction."),
    (r"\.merge\.norm\.", ".downsample.norm."),
    (r"^head\.", "tscam_conv."),
]
SEPARATOR_NAMES = [
    (r"^bin_norm\.", "bn0."),
    (r"^encoder\.(\d+)\.", lambda found: f"encoder_block{int(found[1]) + 1}.conv_block."),
    (r"^centre\.", "conv_block7."),
    (r"^decoder\.(\d+)\.", lambda found: f"decoder_block{int(found[1]) + 1}."),
    (r"\.block\.", ".conv_block2."),
    (r"\.up\.", ".conv1."),
    (r"\.norm\.", ".bn1."),
    (r"\.shift\.", ".emb1."),
    (r"\.norm([12])\.", r".bn\1."),
    (r"\.shift([12])\.", r".emb\1."),
    (r"^last\.", "after_conv_block1."),
    (r"^logits\.", "after_conv2."),
]
# Trained, but not used for the outputs needed here.
UNUSED = {"sed_model.head.weight": (527, 527), "sed_model.head.bias": (527,)}
# Constants that the authors' program stores too: windows, Fourier and mel matrices, indices, masks.
CONSTANT = re.compile(
    r"(i?stft|(at_model\.)?sed_model\.spectrogram_extractor\.stft)\.(conv_(real|imag)\.weight|ola_window)"
    r"|(at_model\.)?sed_model\.logmel_extractor\.melW"
    r"|(at_model\.)?sed_model\.layers\.\d\.blocks\.\d\.(attn\.relative_position_index|attn_mask)"
)


def detector_names(detector: nn.Module) -> dict[str, str]:
    """Map the authors' name of each entry of the detector's state to ours."""
    return {f"sed_model.{rename_entry(name, DETECTOR_NAMES)}": name for name in detector.state_dict()}


def separator_names(separator: nn.Module) -> dict[str, str]:
    """Map the authors' name of each entry of the separator's state to ours."""
    return {rename_entry(name, SEPARATOR_NAMES): name for name in separator.state_dict()}


def rename_entry(name: str, rules: list[tuple[str, Any]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# --- the file ---


class Archive:
    """A checkpoint in torch's zip format (torch 1.6 and later), open for reading.

    Tensors are read on demand: optimiser states, which may be most of a file, never are.
    """

    def __init__(self, path: Path) -> None:
        """Open the archive. Raises CheckpointInvalid if it is no such archive, truncated, or holds no `state_dict`."""
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except OSError as fault:
            raise CheckpointInvalid(f"{path}: {fault.strerror or fault}") from fault
        except Exception as fault:  # zipfile raises what its parts raise
            raise self.invalid("not a checkpoint in torch's zip format, or cut short") from fault
        try:
            self.state = self.read_state()
        except BaseException:
            self.zip.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def invalid(self, fault: str) -> CheckpointInvalid:
        return CheckpointInvalid(f"{self.path}: {fault}")

    def read_state(self) -> dict[str, "StoredTensor"]:
        programs = [name for name in self.zip.namelist() if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise self.invalid("not a checkpoint in torch's zip format: it has no data.pkl")
        self.root = programs[0].removesuffix("data.pkl")
        if f"{self.root}byteorder" in self.zip.namelist() and self.member("byteorder", 16) != b"little":
            raise self.invalid("its numbers are not little-endian")
        checkpoint = self.unpickle()
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise self.invalid("no entry 'state_dict', as the authors' Lightning checkpoints have")
        return checkpoint["state_dict"]

    def unpickle(self) -> Any:
        try:
            if self.zip.getinfo(f"{self.root}data.pkl").file_size > PICKLE_BYTES:
                raise self.invalid("its data.pkl is too large")
            with self.zip.open(f"{self.root}data.pkl") as program:
                return InertUnpickler(program).load()
        except CheckpointInvalid:
            raise
        # A hostile or damaged pickle can make the unpickler raise anything: the file is invalid in any case.
        except Exception as fault:
            raise self.invalid(f"its data.pkl cannot be read ({type(fault).__name__}: {fault})") from fault

    def member(self, name: str, size: int) -> bytes:
        """Return a member's bytes, `size` at most, after verifying its checksum."""
        try:
            info = self.zip.getinfo(self.root + name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise self.invalid(f"its member {name} is compressed or larger than the tensors in it")
            return self.zip.read(info)
        except CheckpointInvalid:
            raise
        except Exception as fault:  # as above: zipfile raises what its parts raise
            raise self.invalid(f"its member {name} cannot be read ({type(fault).__name__}: {fault})") from fault

    def fill(
        self,
        network: nn.Module,
        names: dict[str, str],
        unused: dict[str, tuple[int, ...]],
        others: Iterable[str] = (),
    ) -> None:
        """Load the network's entries; `names` maps the file's names to the network's.

        The `unused` entries are required, with their shapes, and not read; `others` are optional. Everything is checked
        before anything is read. Raises CheckpointInvalid, which names the first invalid entry.
        """
        wanted = network.state_dict()
        shapes = {name: tuple(wanted[ours].shape) for name, ours in names.items()}
        for name, shape in (shapes | unused).items():
            entry = self.state.get(name)
            if entry is None:
                raise self.invalid(f"entry {name!r} is missing")
            if not isinstance(entry, StoredTensor):
                raise self.invalid(f"entry {name!r} is not a tensor")
            if entry.shape != shape:
                raise self.invalid(f"entry {name!r} has shape {entry.shape} instead of {shape}")
        known = {*shapes, *unused, *others}
        for name in self.state:
            if name not in known and not (isinstance(name, str) and CONSTANT.fullmatch(name)):
                raise self.invalid(f"entry {name!r} is not one of the authors'")
        state = {ours: self.tensor(name).to(wanted[ours].dtype) for name, ours in names.items()}
        network.load_state_dict(state, assign=True)

    def tensor(self, name: str) -> Tensor:
        """Return an entry as a tensor. Raises CheckpointInvalid if it is truncated, damaged or not finite."""
        entry = self.state[name]
        storage = entry.storage
        raw = bytearray(self.member(f"data/{storage.key}", storage.elements * storage.dtype.itemsize))
        try:
            tensor = torch.frombuffer(raw, dtype=storage.dtype).as_strided(entry.shape, entry.stride, entry.offset)
        except (RuntimeError, ValueError, TypeError, OverflowError) as fault:
            raise self.invalid(f"entry {name!r} reaches outside its numbers") from fault
        if not tensor.isfinite().all():
            raise self.invalid(f"entry {name!r} holds numbers that are not finite")
        return tensor


@dataclass(frozen=True)
class Storage:
    """A tensor's storage: a member of the archive."""

    key: str
    dtype: torch.dtype
    elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's view of its storage; offset and stride in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Placeholder for every class and function that is not in `REBUILT`: accepts any call and does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> "Inert":
        return self

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None: ...

    def extend(self, _: object) -> None: ...

    def add(self, _: object) -> None: ...


def rebuild_tensor(storage: object, offset: int, shape: tuple, stride: tuple, *_: object) -> StoredTensor | Inert:
    """Replace `torch._utils._rebuild_tensor_v2`, with the same arguments."""
    if not isinstance(storage, Storage):
        return Inert()
    return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def rebuild_parameter(stored: StoredTensor, *_: object) -> StoredTensor:
    """Replace `torch._utils._rebuild_parameter`, with the same arguments."""
    return stored


REBUILT = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
}


# The unpickler written in Python: the one in C allocates memory for any memo index that a file contains.
PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class InertUnpickler(PythonUnpickler):
    """An unpickler whose only callables are those of `REBUILT` and `Inert`."""

    # Without opcodes that allocate memory unchecked, and without older ones for objects, which torch never writes.
    dispatch: ClassVar = {
        code: run
        for code, run in PythonUnpickler.dispatch.items()
        if bytes([code]) not in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ)
    }

    def load_build(self) -> None:
        """Discard an object's state: it is not needed, and could replace the callables."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        return REBUILT.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> Storage | Inert:
        kind, dtype, key, _, elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Inert()
        return Storage(str(key), dtype, int(elements))

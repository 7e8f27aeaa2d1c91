"""The authors' files: what is accepted, what is refused, and that no code in them runs."""

import collections
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import checkpoints
from models.authors import CONSTANT, UNUSED, Archive, detector_names, load_authors, separator_names
from models.engine import Engine
from models.errors import CheckpointInvalid
from models.networks.htsat import HTSAT, HyperParameters
from models.networks.unet import UNet
from models.queries.query import PAPER_RULES


def one_number(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of any shape that takes four bytes in a file."""
    return torch.ones((), dtype=dtype).expand(shape)


@pytest.fixture(scope="module")
def blank() -> tuple[HTSAT, UNet]:
    with torch.device("meta"):
        return HTSAT(), UNet()


@pytest.fixture
def detector_state(blank) -> dict[str, Tensor]:
    own = blank[0].state_dict()
    state = {name: one_number(own[ours].shape, own[ours].dtype) for name, ours in detector_names(blank[0]).items()}
    return state | {name: one_number(shape) for name, shape in UNUSED.items()}


@pytest.fixture
def separator_state(blank, detector_state) -> dict[str, Tensor]:
    own = blank[1].state_dict()
    state = {name: one_number(own[ours].shape, own[ours].dtype) for name, ours in separator_names(blank[1]).items()}
    return {f"at_model.{name}": entry for name, entry in detector_state.items()} | state


def save_checkpoint(path: Path, state: object, **beside: object) -> Path:
    torch.save({"epoch": 3, "state_dict": state, **beside}, path)
    return path


# --- the authors' layout ---


def test_the_loader_knows_the_authors_layout(parity, blank):
    layout = json.loads((parity / "layout.json").read_text())
    filled = {
        file: {name: entry["shape"] for name, entry in entries.items() if not entry["constant"]}
        for file, entries in layout.items()
    }
    ours = blank[0].state_dict()
    detector = {name: list(ours[own].shape) for name, own in detector_names(blank[0]).items()}
    detector |= {name: list(shape) for name, shape in UNUSED.items()}
    assert detector == filled["sed"]
    ours = blank[1].state_dict()
    separator = {name: list(ours[own].shape) for name, own in separator_names(blank[1]).items()}
    assert separator | {f"at_model.{name}": shape for name, shape in detector.items()} == filled["separator"]
    constants = {name for entries in layout.values() for name, entry in entries.items() if entry["constant"]}
    names = {name for entries in layout.values() for name in entries}
    assert {name for name in names if CONSTANT.fullmatch(name)} == constants


def test_the_separators_file_alone_is_enough(tmp_path, separator_state):
    detector, separator = load_authors(separator=save_checkpoint(tmp_path / "separator.ckpt", separator_state))
    assert separator is not None
    for network in (detector, separator):
        assert not network.training
        assert {entry.dtype for entry in network.parameters()} == {torch.float32}
        assert all(entry.device.type == "cpu" for entry in (*network.parameters(), *network.buffers()))


def test_a_detector_beside_the_separator_is_preferred(tmp_path, detector_state, separator_state):
    detector_state["sed_model.norm.bias"] = torch.full((2048,), 5.0)
    files = (
        save_checkpoint(tmp_path / "detector.ckpt", detector_state),
        save_checkpoint(tmp_path / "separator.ckpt", separator_state),
    )
    detector, separator = load_authors(*files)
    assert separator is not None
    assert (detector.norm.bias == 5).all()


def test_constants_and_half_precision_are_accepted(tmp_path, detector_state):
    detector_state["sed_model.logmel_extractor.melW"] = torch.zeros(513, 64)
    detector_state["sed_model.layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    detector_state["sed_model.norm.bias"] = torch.full((2048,), 5.0, dtype=torch.float16)
    detector, _ = load_authors(detector=save_checkpoint(tmp_path / "detector.ckpt", detector_state))
    assert detector.norm.bias.dtype == torch.float32


def test_without_files_nothing_is_loaded():
    with pytest.raises(ValueError, match="needs the detector's file"):
        load_authors()


def test_the_authors_files_become_a_bundle(tmp_path, separator_state):
    bundle = checkpoints.authors_bundle(separator=save_checkpoint(tmp_path / "separator.ckpt", separator_state))
    assert (bundle.name, bundle.version, bundle.config["preset"]) == ("paper", "1", "paper")
    assert bundle.config["query"]["least_energy"] == PAPER_RULES.least_energy == 0.1
    built, _ = checkpoints.PRESETS["paper"](json.loads(json.dumps(bundle.config)))
    assert built.hyper == HyperParameters()
    with pytest.raises(CheckpointInvalid, match="cannot separate"):
        checkpoints.authors_bundle(detector=tmp_path / "separator.ckpt")
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(CheckpointInvalid, match="not a checkpoint in torch's zip format"):
        Engine.load({"separator": tmp_path / "empty.ckpt"}, "cpu")


# --- what is refused ---

LAST = "decoder_block6.conv_block2.bn2.running_var"
CARRIED = "at_model.sed_model.layers.2.blocks.5.attn.relative_position_bias_table"
# The carried detector is checked first: a separator's entry costs to read all of it.
FAULTS = {
    "missing": (LAST, None, f"entry '{LAST}' is missing"),
    "missing in the carried detector": (CARRIED, None, f"entry '{CARRIED}' is missing"),
    "mis-shaped": (CARRIED, torch.ones(33), rf"entry '{CARRIED}' has shape \(33,\) instead of \(225, 16\)"),
    "transposed": (CARRIED, one_number((16, 225)), rf"'{CARRIED}' has shape \(16, 225\) instead of \(225, 16\)"),
    "no tensor": (CARRIED, [1.0] * 225, f"entry '{CARRIED}' is not a tensor"),
    "sparse": (CARRIED, torch.ones(225, 16).to_sparse(), f"entry '{CARRIED}' is not a tensor"),
    "unknown": ("encoder_block7.conv1.weight", torch.ones(1), "'encoder_block7.conv1.weight' is not one of"),
    "not a number": (CARRIED, torch.full((225, 16), torch.nan), f"entry '{CARRIED}' holds numbers that are not finite"),
}


@pytest.mark.parametrize(("name", "entry", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_the_first_wrong_entry_is_named(tmp_path, separator_state, name, entry, message):
    separator_state.pop(name, None)
    if entry is not None:
        separator_state[name] = entry
    with pytest.raises(CheckpointInvalid, match=message):
        load_authors(separator=save_checkpoint(tmp_path / "separator.ckpt", separator_state))


def test_of_several_wrong_entries_the_first_is_named(tmp_path, detector_state):
    del detector_state["sed_model.norm.bias"], detector_state["sed_model.patch_embed.norm.weight"]
    with pytest.raises(CheckpointInvalid, match=r"detector\.ckpt: entry 'sed_model\.patch_embed\.norm\.weight'"):
        load_authors(detector=save_checkpoint(tmp_path / "detector.ckpt", detector_state))


def test_a_separator_is_not_a_detector(tmp_path, detector_state, separator_state):
    with pytest.raises(CheckpointInvalid, match="is missing"):
        load_authors(detector=save_checkpoint(tmp_path / "separator.ckpt", separator_state))
    with pytest.raises(CheckpointInvalid, match="is missing"):
        load_authors(separator=save_checkpoint(tmp_path / "detector.ckpt", detector_state))


def archive(data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("archive/data.pkl", data)
    return file.getvalue()


def bytes_of(checkpoint: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(checkpoint, file, **options)
    return file.getvalue()


NO_CHECKPOINTS = {
    "empty": b"",
    "text": b"These are not weights.\n",
    "a plain pickle": pickle.dumps({"state_dict": {}}),
    "a zip": archive(b"").replace(b"data.pkl", b"data.txt"),
    "a zip without a program": archive(b""),
    "torch before 1.6": bytes_of({"state_dict": {}}, _use_new_zipfile_serialization=False),
    "a bare state": bytes_of({"bn0.weight": torch.ones(1025)}),
    "no dictionary": bytes_of([1, 2]),
    "a state that is none": bytes_of({"state_dict": 5}),
    "a huge memo": archive(b"\x80\x02}r\xff\xff\xff\x7f."),
    "a huge array": archive(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"."),
    "a program that never ends": archive(b"\x80\x02}q\x00"),
}


@pytest.mark.parametrize("content", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS.keys())
def test_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid, match=re.escape(str(path))) as refused:
        Archive(path)
    assert refused.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("path", [".", "none.ckpt"])
def test_a_folder_or_nothing_is_refused(tmp_path, path):
    with pytest.raises(CheckpointInvalid):
        load_authors(separator=tmp_path / path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, detector_state, share):
    whole = save_checkpoint(tmp_path / "detector.ckpt", detector_state)
    content = whole.read_bytes()
    whole.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointInvalid, match="cut short"):
        Archive(whole)


def test_damaged_numbers_are_refused(tmp_path, detector_state):
    detector_state["sed_model.norm.bias"] = torch.full((2048,), 1.234567)
    whole = save_checkpoint(tmp_path / "detector.ckpt", detector_state)
    content = whole.read_bytes()
    place = content.index(torch.full((8,), 1.234567).numpy().tobytes())
    whole.write_bytes(content[:place] + b"\0" + content[place + 1 :])
    with pytest.raises(CheckpointInvalid, match="CRC"):
        load_authors(detector=whole)


def test_a_compressed_member_is_refused(tmp_path, detector_state):
    """Where nothing is compressed, nothing can be much larger than the file."""
    whole, packed = save_checkpoint(tmp_path / "detector.ckpt", detector_state), tmp_path / "packed.ckpt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointInvalid, match="compressed"):
        load_authors(detector=packed)


def test_a_tensor_that_reaches_outside_its_numbers_is_refused(tmp_path, detector_state):
    whole = save_checkpoint(tmp_path / "detector.ckpt", detector_state)
    with zipfile.ZipFile(whole) as source:
        members = {name: source.read(name) for name in source.namelist()}
    root = next(name for name in members if name.endswith("data.pkl")).removesuffix("data.pkl")
    members[f"{root}data/0"] = b""
    with zipfile.ZipFile(whole, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    with pytest.raises(CheckpointInvalid, match="reaches outside"):
        load_authors(detector=whole)


# --- nothing runs ---


class Hostile:
    """Makes a folder when it is unpickled by something that obeys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Callback:
    """Like a Lightning callback: a class of somebody else's, with a state."""

    best = 0.0

    def __setstate__(self, state: object) -> None:
        raise AssertionError("a state was set")


class Mapping(dict):
    """Like Lightning's hyper-parameters."""


def test_the_hostile_file_is_one(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["beside", "entry", "state", "whole"])
def test_code_in_a_file_does_not_run(tmp_path, detector_state, place):
    hostile, path = Hostile(tmp_path / "ran"), tmp_path / "detector.ckpt"
    if place == "beside":
        load_authors(detector=save_checkpoint(path, detector_state, callbacks=[hostile]))
    else:
        checkpoint = {
            "entry": {"state_dict": detector_state | {"sed_model.norm.bias": hostile}},
            "state": {"state_dict": hostile},
            "whole": hostile,
        }[place]
        torch.save(checkpoint, path)
        with pytest.raises(CheckpointInvalid):
            load_authors(detector=path)
    assert not (tmp_path / "ran").exists()


def test_what_lightning_leaves_beside_the_state_is_passed_over(tmp_path, detector_state):
    callback = Callback()
    callback.best = 0.4
    path = save_checkpoint(
        tmp_path / "detector.ckpt",
        collections.OrderedDict(detector_state),
        callbacks={Callback: {"best_model_path": Path("a/b"), "callback": callback}},
        hyper_parameters=Mapping(lr=1e-3, sizes={1, 2}, steps=collections.deque([1, 2])),
        optimizer_states=[{"state": {0: {"exp_avg": torch.ones(3, dtype=torch.complex64)}}}],
        generator=torch.Generator().get_state(),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    detector, _ = load_authors(detector=path)
    assert (detector.norm.bias == 1).all()

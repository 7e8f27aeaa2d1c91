"""Device and numerical precision of the networks."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import torch
from torch import nn

from models.compute.allocator import return_freed_memory
from models.compute.signal_stack import give_signals_a_stack
from models.errors import DeviceUnavailable
from models.networks import Separator
from models.networks.packed_layers import pack_convolutions, pack_linear_layers, pack_square_convolutions
from models.networks.unet import UNet

logger = logging.getLogger(__name__)

Precision = Literal["auto", "exact"]


@dataclass(frozen=True)
class Arithmetic:
    """A device and the number format that masks are computed in; everything around masks stays float32."""

    device: torch.device
    bfloat16: bool
    exact: bool

    @classmethod
    def of(cls, device: str = "auto", precision: Precision = "auto") -> "Arithmetic":
        """device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1". Raises DeviceUnavailable."""
        if precision not in ("auto", "exact"):
            raise ValueError(f"precision must be 'auto' or 'exact', not {precision!r}")
        return cls.on(_device(device), precision)

    @classmethod
    def on(cls, device: torch.device, precision: Precision = "auto") -> "Arithmetic":
        """Arithmetic on a device that exists."""
        return cls(device, precision == "auto" and has_bfloat16(device.type), precision == "exact")

    def prepare(self, network: nn.Module) -> None:
        """Move a network to the device, in the memory layout that is fastest for its convolutions."""
        if self.device.type == "cpu":
            give_signals_a_stack()
        network.to(self.device)
        # A separator that will be packed needs no copy of its weights in another layout.
        if not self.exact and not (self._packs and isinstance(network, UNet)):
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def accelerate(self, detector: nn.Module, separator: Separator) -> None:
        """Merge the layers of a prepared separator; on a CPU, pack those of the paper's two networks, whose weights are
        large, and the convolutions of another detector. Outputs change by rounding; with `exact`, not at all.
        Irreversible."""
        if self.exact:
            return
        dtype = torch.bfloat16 if self.bfloat16 else torch.float32
        if not self._packs:
            separator.fold()
        elif isinstance(separator, UNet):
            separator.pack(dtype, separator.full_resolution)
            pack_linear_layers(detector, half=self.bfloat16)
            return_freed_memory()
        else:  # not the separator's pointwise layers: in a packed layer's batch, equal queries would round apart
            separator.fold()
            pack_square_convolutions(cast(nn.Module, separator), dtype)
            pack_convolutions(detector, half=self.bfloat16)

    @property
    def _packs(self) -> bool:
        return not self.exact and self.device.type == "cpu" and torch.backends.mkldnn.is_available()

    @contextmanager
    def float32(self) -> Iterator[None]:
        """Context for computing in float32; with `exact`, GPUs do not use TF32 either."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=not self.exact):
            yield

    @contextmanager
    def masks(self) -> Iterator[None]:
        """Context for computing masks: bfloat16 where that is fast and allowed."""
        with ExitStack() as stack:
            stack.enter_context(self.float32())
            if self.bfloat16:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            yield


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's weights; the CPU if it has none."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@cache
def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        logger.info("no GPU found: computing on the CPU")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailable(f"{name!r} is not a device: use auto, cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(f"this machine has no {name}: use auto or cpu")
    return device


@cache
def has_bfloat16(kind: str) -> bool:
    """Return whether the hardware multiplies bfloat16; elsewhere it is emulated, and slower than float32."""
    if kind == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = kind == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bfloat16()
    if not there:
        logger.warning("this %s has no bfloat16: computing in float32", kind)
    return there


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "arm_bf16", "bf16"))

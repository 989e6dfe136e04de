"""Several processes on one machine or many, launched by ``torchrun`` or ``accelerate launch``, as one training.

The contract: a step of the whole batch is the same number whatever the number of processes, but for the order in which
floating-point numbers are added up (and for the masks of dropout, which every process draws for its own rows).  Each
works on its :class:`~sfumato.randomness.Share` of the rows, whose data and noise are those that one process would give
them; losses and gradients are sums over the processes, divided by the whole batch.  Process 0 decides the time and is
the only one that writes.  Checkpoints hold whole tensors, so any number of processes continues them.  What stops one
process stops all, each with a line of its own (:meth:`Processes.together`, :func:`leaving`).

Weights are kept whole on every process (PyTorch's ``DistributedDataParallel``), or, where asked for, weights, gradients
and the optimiser's state are divided among them (``fully_shard``; Rajbhandari et al. 2020, "ZeRO").  What processes
tell each other beside gradients goes over gloo, on the CPU.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from sfumato import launch
from sfumato.core import RNG
from sfumato.errors import Refusal
from sfumato.randomness import Share, split
from sfumato.training.devices import resolve_device

T = TypeVar("T")
#: A process may wait this long for another one (pairs of a teacher are made by the first).
PATIENCE = timedelta(hours=24)
#: Layers with at least this many parameters are gathered one at a time where weights are sharded.
UNIT = 2**12
#: ``accelerate launch --use_fsdp`` asks for sharding by this.
SHARDS = "ACCELERATE_USE_FSDP"
#: What gloo says to a process whose peer has gone.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused")


class Losses(nn.Module):
    """A system's losses as the forward pass of a module that owns its network: what the wrappers of PyTorch wrap."""

    def __init__(self, system: Any, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.system = system

    def forward(self, rows: Mapping[str, Tensor], rng: RNG) -> Mapping[str, Tensor]:
        """The losses ``[b]`` of some rows, by the name of the optimiser."""
        losses: Mapping[str, Tensor] = self.system.losses(rows, rng)
        return losses


@final
class Processes:
    """This process, number ``rank`` of ``count``, on its ``device``; ``talk``: the group that it speaks in.

    :data:`ALONE` is the only one there is; :func:`join` finds the others.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None, talk: Any = None) -> None:
        self.rank, self.count, self.talk = rank, count, talk
        self.device = torch.device("cpu") if device is None else device

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    # ------------------------------------------------------------------------------------------------------ talking

    def add(self, x: Tensor) -> Tensor:
        """The sum of ``x`` (a number, or numbers of one shape) over the processes, on the CPU."""
        total = x.detach().cpu().clone()
        if self.count > 1:
            torch.distributed.all_reduce(total, group=self.talk)
        return total

    def joined(self, own: Tensor, first: int, n: int) -> Tensor:
        """``n`` rows, of which this process brings ``own`` from row ``first`` on, and others the rest; on the CPU."""
        if self.count == 1:
            return own
        whole = torch.zeros((n, *own.shape[1:]), dtype=own.dtype)
        whole[first : first + len(own)] = own.detach().cpu()
        return self.add(whole)

    def share(self, n: int) -> tuple[int, int]:
        """Which of ``n`` things, from the first to before the second, are this process's (there may be none)."""
        return split(0, n, self.count)[self.rank]

    def told(self, value: Any) -> Any:
        """``value`` as the first process has it."""
        box = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(box, src=0, group=self.talk)
        return box[0]

    def together(self, work: Callable[[], T]) -> T:
        """Every process's own ``work``, in which none may speak to others; what stops any of them is raised by all:
        its own error there, a :class:`Refusal` of the same words elsewhere.
        """
        if self.count == 1:
            return work()
        found: list[T] = []
        said: list[Any] = [None] * self.count
        try:
            found.append(work())
        finally:  # whatever it is, it goes on from here once the others know
            line = None if found else _said(sys.exc_info()[1])
            torch.distributed.all_gather_object(said, line, group=self.talk)
        for line in said:
            if line is not None:
                raise Refusal(line)
        return found[0]

    def first(self, work: Callable[[], object]) -> None:
        """``work`` of the first process alone; what stops it is raised by all."""
        self.together(lambda: work() if self.main else None)

    def in_turn(self, work: Callable[[], T]) -> T:
        """``work`` of the first process, then of all others, which find what it left; a refusal is raised by all."""
        found = self.together(lambda: [work()] if self.main else [])
        return self.together(lambda: found[0] if self.main else work())

    def same(self, value: object, what: str) -> None:
        """Raises :class:`Refusal` unless all processes have the same ``value``: they must read the same files."""
        theirs = self.told(value)
        self.together(lambda: _require_same(self.rank, value, theirs, what))

    def alike(self, facts: Mapping[str, Any]) -> None:
        """Raises :class:`Refusal` unless all processes have the same values of what they train."""
        theirs = self.told(dict(facts))
        self.together(lambda: _require_alike(self.rank, facts, theirs))

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's ``seconds``, and whether any of them was asked to stop."""
        if self.count == 1:
            return seconds, stop
        total = self.add(torch.tensor([seconds if self.main else 0.0, float(stop)], dtype=torch.float64))
        return float(total[0]), bool(total[1] > 0)

    # ------------------------------------------------------------------------------------------------------- a step

    def shares(self, batch: int, accumulate: int) -> list[Share]:
        """The rows of a batch that are this process's, in ``accumulate`` parts.

        Raises :class:`Refusal` where a part would have no row.
        """
        if batch < self.count * accumulate:
            raise Refusal(
                f"batch={batch} has no row for each of {accumulate} parts on {self.count} processes; give batch="
                f"{self.count * accumulate} or more"
            )
        first, last = self.share(batch)
        return [Share(a, b, batch) for a, b in split(first, last, accumulate)]


ALONE = Processes()
_JOINED: list[Processes] = []


def _said(error: BaseException | None) -> str:
    """What others read of an error that is no refusal of theirs: one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    line = " ".join(str(error).split())
    return line if isinstance(error, Refusal) else f"another process stopped: {type(error).__name__} {line}".rstrip()


@contextmanager
def leaving(processes: Processes) -> Iterator[None]:
    """Work of several processes: one that finds another gone raises :class:`Refusal` (NCCL finds nobody gone: there
    the launcher ends the others).
    """
    try:
        yield
    except RuntimeError as error:
        if processes.count > 1 and any(words in str(error) for words in GONE):
            raise Refusal("another process stopped; its own line says why") from None
        raise


def _require_same(rank: int, value: object, theirs: object, what: str) -> None:
    if value != theirs:
        raise Refusal(f"process {rank} finds {what} {value}, process 0 {theirs}; give all machines the same files")


def _require_alike(rank: int, facts: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        if name not in theirs or theirs[name] != value:
            raise Refusal(
                f"process {rank} has {name}={value}, process 0 {theirs.get(name)}; start all of them with the same "
                "command, and give all machines the same files"
            )


def join(device: str) -> Processes:
    """This process among those that were launched with it, by Accelerate; alone where it was started alone.

    Raises :class:`Refusal` where the device is not available, where these processes already trained elsewhere
    (Accelerate allows one place per process), or where Accelerate does not join all that were launched.
    """
    wanted = resolve_device(device)
    if launch.count() == 1:
        return Processes(device=wanted)
    from accelerate import Accelerator, InitProcessGroupKwargs

    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else Accelerate warns, and sets its own
    elsewhere = f"this process trained on another device before; start a new one for device={device}"
    handlers = [InitProcessGroupKwargs(timeout=PATIENCE)]
    try:
        accelerator: Any = Accelerator(cpu=wanted.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    except ValueError:
        raise Refusal(elsewhere) from None
    require_joined(accelerator.num_processes)
    if accelerator.device.type != wanted.type:
        raise Refusal(elsewhere)
    if not _JOINED:
        talk = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        _JOINED.append(Processes(accelerator.process_index, accelerator.num_processes, accelerator.device, talk))
        atexit.register(_leave)
    return _JOINED[0]


def require_joined(found: int) -> None:
    """Raises :class:`Refusal` unless ``found`` processes, as many as were launched, have joined: else each of them
    would think that it is the first.
    """
    if found != launch.count():
        raise Refusal(
            f"{launch.count()} processes were launched and {found} joined; start them with torchrun --nproc-per-node "
            f"{launch.count()}"
        )


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------ whole and in parts


def units(net: nn.Module) -> list[nn.Module]:
    """The layers of a network that follow each other: the members of its lists, each called as a whole."""
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
                found.append(child)
            else:
                walk(child)

    walk(net)
    return [unit for unit in found if any(True for _ in unit.parameters())]


def require_shardable(net: nn.Module) -> None:
    """Raises :class:`Refusal` for a network whose weights cannot be divided."""
    from sfumato.nets.energy import Energy
    from sfumato.nets.mp_layers import MPConv2d, MPLinear

    if any(isinstance(module, Energy) for module in net.modules()):
        raise Refusal("an energy is differentiated twice, which was not tried in shards; leave --shard out")
    for name, parameter in net.named_parameters():
        if parameter.ndim == 0:
            raise Refusal(f"{name} is a single number, which cannot be sharded; leave --shard out")
    if any(isinstance(module, MPConv2d | MPLinear) for module in net.modules()):
        raise Refusal("this network writes its own weights in training, which shards cannot follow; leave --shard out")


def shard(module: nn.Module, processes: Processes) -> None:
    """Divide the parameters of ``module`` among the processes, its layers one by one, in place (FSDP2).

    Raises :class:`Refusal` for a network that cannot be divided.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    require_shardable(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # shards are rows of memory
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for unit in units(module):
        if sum(p.numel() for p in unit.parameters()) >= UNIT:
            fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh)


def replicate(module: nn.Module, processes: Processes, unused: bool) -> nn.Module:
    """``module`` with gradients that are means over the processes; ``unused``: some parameters may get none."""
    from torch.nn.parallel import DistributedDataParallel

    devices = None if processes.device.type == "cpu" else [processes.device]
    known = inspect.signature(DistributedDataParallel.__init__).parameters  # PyTorch 2.13 gave it another name
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    more: dict[str, Any] = {buffers: False}  # all processes have the same
    # the gradient of a 1x1 kernel comes with its channels last or first as the backend likes, which are one layout in
    # memory; DDP compares strides alone, in every backward pass, and warns that copies (of such kernels) cost time
    layout = "Grad strides do not match bucket view strides. This may indicate grad was not created according to the"
    warnings.filterwarnings("ignore", re.escape(layout), UserWarning)
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=unused, **more)


@contextmanager
def accumulating(module: Callable[..., Any], last: bool) -> Iterator[None]:
    """Gradients of all parts but the ``last`` stay on their process, where that saves sending them."""
    no_sync = getattr(module, "no_sync", None)
    with contextlib.nullcontext() if last or no_sync is None else no_sync():
        yield


def local(x: Tensor) -> Tensor:
    """The part of a tensor that is on this process, sharing its memory."""
    own: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return own


def whole(x: Tensor) -> Tensor:
    """A tensor that is divided among processes as one; all of them must ask."""
    full: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return full


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, whole; all processes must ask.  Those that are divided are put together one after another, on the
    CPU: a device never holds more than one of them.
    """
    return {name: _gathered(value.detach()) for name, value in tensors.items()}


def _gathered(x: Tensor) -> Tensor:
    full = whole(x)
    return full if full is x else full.cpu()


def like(held: Tensor, value: Tensor) -> Tensor:
    """A whole tensor ``value`` laid out in memory, and divided, as ``held`` is."""
    if not hasattr(held, "device_mesh"):
        return torch.empty_like(held.detach()).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    parted: Any = held
    return distribute_tensor(value.to(held.device), parted.device_mesh, parted.placements, src_data_rank=None)

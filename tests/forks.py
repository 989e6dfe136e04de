"""Imports the library once, then forks processes for the jobs it reads: started by tests, as a script.

A job is a line of JSON: ``{"task": NAME, "processes": n, "kill": SECONDS or null, ...}``; all else goes to the task, a
function below.  The processes of a job know each other as a launcher would have it (``RANK``, ``WORLD_SIZE``, ...).
``others``: arguments that all processes but the first have more.  ``fault``: what fails in process ``faulty``,
as ``module:Class.function``, by a full disk, or ``gone``: by ending at once.  All of them have five minutes.
With ``kill`` they get SIGKILL after so many seconds; with ``kill_while``, a pattern of files, while there is one that
was not there before.  Answers with a line of their exit codes and the seconds it took.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (so that it is there after the fork)
import torch
from torch import nn

import sfumato as sf
from sfumato import __main__ as command
from sfumato.core import RNG
from sfumato.data.rows import Dataset
from sfumato.training import files, monitor, parallel
from sfumato.training.horizon import Steps
from sfumato.training.loop import train_steps
from sfumato.training.optim import Applied, Optimiser
from sfumato.training.run import Stopped
from sfumato.training.settings import Optimisation

torch.set_num_threads(1)
OK, REFUSED, STOPPED, BROKEN = 0, 2, 130, 1
#: Seconds that a process has, at most.
LONGEST = 300


# ------------------------------------------------------------------------------------------------------------ tasks


def train(job: dict[str, Any]) -> int:
    """``sf.train``; ``stop``: the step in whose report process ``stopper`` is interrupted."""
    stop, stopper = job.get("stop"), job.get("stopper", 0)
    if stop is not None:
        real = monitor.Log.step

        def step(self: monitor.Log, record: Any) -> None:
            if record.step == stop and int(os.environ.get("RANK", "0")) == stopper:
                signal.raise_signal(signal.SIGINT)
            real(self, record)

        monitor.Log.step = step  # type: ignore[method-assign]
    try:
        sf.train(job["recipe"], job["data"], out=job["out"], quiet=True, **job["settings"])
    except Stopped:
        return STOPPED
    return OK


def cli(job: dict[str, Any]) -> int:
    """The command line; what it prints goes to ``log``, with the number of the process."""
    text = io.StringIO()
    more = job.get("others", []) if os.environ.get("RANK", "0") != "0" else []
    with redirect_stdout(text), redirect_stderr(text):
        code = command.run(job["arguments"] + more)
    Path(f"{job['log']}.{os.environ.get('RANK', '0')}").write_text(text.getvalue())
    return code


class Descent:
    """Plain gradient descent, where the trainer has its optimiser."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        self.parameters, self.rate = list(net.parameters()), rate

    def apply(self, step: int, progress: float) -> Applied:
        norm = parallel.whole(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        with torch.no_grad():
            for p in self.parameters:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=self.rate)
                p.grad = None
        return Applied(self.rate, float(norm))


def steps(job: dict[str, Any]) -> int:
    """Some steps of a recipe's own loop; process 0 writes weights and losses to ``out``."""
    processes = parallel.join("cpu")
    data = sf.data.load(job["data"])
    recipe = sf.recipes.get(job["recipe"])
    settings = sf.training.settings.resolve(recipe.defaults, job["settings"])
    units = data.prepared(settings)
    model = recipe.build(settings, units.spec(), {"seed": 0, "horizon": {"steps": job["steps"]}})
    model.net.train()
    compute: Any = None
    warnings.simplefilter("error")
    if processes.count > 1 or job.get("shard"):
        compute = parallel.Losses(model, model.net)
        if job.get("shard"):
            parallel.shard(compute, processes)
        else:
            compute = parallel.replicate(compute, processes, unused=False)
    own = settings.optimisation
    optimiser: Any = Descent(model.net, 0.05) if job["optimiser"] == "sgd" else Optimiser(model.net, own)
    found = list(
        train_steps(
            model, units.rows(processes.device), {"net": optimiser}, Steps(job["steps"]), batch=own.batch, seed=0,
            accumulate=own.accumulate, processes=processes, compute=compute,
        )
    )  # fmt: skip
    weights = parallel.whole_tensors(model.net.state_dict())
    if processes.main:
        weights["losses"] = torch.tensor([step.loss for step in found], dtype=torch.float64)
        weights["norms"] = torch.tensor([step.grad_norm for step in found], dtype=torch.float64)
        files.write_bytes(Path(job["out"]), files.pack_tensors(weights))
    return OK


class Explodes:
    """A system whose loss is not finite in one row of the batch, at one step."""

    def __init__(self, row: int, step: int) -> None:
        self.net, self.row, self.step, self.seen = nn.Linear(1, 1), row, step, 0

    def losses(self, batch: Any, rng: RNG) -> dict[str, torch.Tensor]:
        self.seen += 1
        loss = self.net(batch["x"].float()).flatten()
        bad = batch["label"] == self.row
        return {"net": torch.where(bad & torch.tensor(self.seen > self.step), float("inf"), loss)}

    def describe_level(self, n: int, worst: int, rng: RNG) -> str:
        return f"row {worst} of {n}"


def diverge(job: dict[str, Any]) -> int:
    """A loss that is infinite in one row: every process must say so of the same one."""
    processes = parallel.join("cpu")
    system = Explodes(row=5, step=1)
    rows = Dataset(torch.ones(8, 1), torch.arange(8), torch.device("cpu"))
    compute = parallel.replicate(parallel.Losses(system, system.net), processes, unused=False)
    optimisers = {"net": Optimiser(system.net, Optimisation(batch=8))}
    told = ""
    try:
        list(train_steps(system, rows, optimisers, Steps(3), batch=8, seed=0, processes=processes, compute=compute))
    except sf.Refusal as refusal:
        told = str(refusal)
    Path(f"{job['out']}.{processes.rank}").write_text(told)
    return OK


def turn(path: Path, main: bool) -> bool:
    """Whether the first process has been here; it takes its time."""
    there = path.exists()
    if main:
        time.sleep(0.3)
        path.touch()
    return there


def talk(job: dict[str, Any]) -> int:
    """What processes tell each other: written by every one of them."""
    processes = parallel.join("cpu")
    first, last = processes.share(7)
    said = {
        "share": [first, last],
        "sum": processes.add(torch.tensor([1.0, float(processes.rank)])).tolist(),
        "joined": processes.joined(torch.arange(first, last), first, 7).tolist(),
        "told": processes.told(f"of {processes.rank}"),
        "agreed": list(processes.agree(10.0 + processes.rank, processes.rank == 1)),
        "turns": processes.in_turn(lambda: turn(Path(f"{job['out']}.turn"), processes.main)),
    }

    def refuse() -> None:
        if processes.rank == 1:
            raise sf.Refusal("process 1 does not like it")

    for name, work in {"together": refuse, "same": lambda: processes.same(processes.rank, "a number")}.items():
        try:
            processes.together(work) if name == "together" else work()
            said[name] = ""
        except sf.Refusal as refusal:
            said[name] = str(refusal)
    Path(f"{job['out']}.{processes.rank}").write_text(json.dumps(said))
    return OK


TASKS = {"train": train, "cli": cli, "steps": steps, "diverge": diverge, "talk": talk}


# ------------------------------------------------------------------------------------------------------------ forks


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _fail(where: str, gone: bool) -> None:
    """From now on a function fails."""
    module, _, path = where.partition(":")
    holder, _, name = path.rpartition(".")
    owner = importlib.import_module(module)

    def failing(*args: Any, **named: Any) -> Any:
        if gone:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device", "somewhere")

    setattr(getattr(owner, holder) if holder else owner, name, failing)


def _child(job: dict[str, Any], rank: int, count: int, port: int) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(LONGEST)
    if job.get("fault") is not None and rank == job.get("faulty", 0):
        _fail(job["fault"], bool(job.get("gone")))
    if count > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    try:
        return TASKS[job["task"]](job)
    except sf.Refusal as refusal:
        print(f"process {rank}: {refusal}", file=sys.stderr, flush=True)
        return REFUSED


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Fork the processes of a job and wait for them."""
    count, port, began, pids = int(job.get("processes", 1)), _port(), time.perf_counter(), []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            code = BROKEN
            try:
                code = _child(job, rank, count, port)
            finally:  # never back into the loop of the parent
                if sys.exc_info()[0] is not None:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    if job.get("kill") is not None:
        time.sleep(float(job["kill"]))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # a process that has ended waits for us, so it is there
    if job.get("kill_while") is not None:
        where, pattern = Path(job["kill_while"]).parent, Path(job["kill_while"]).name
        before = set(where.glob(pattern))
        while os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if set(where.glob(pattern)) - before:
                os.kill(pids[0], signal.SIGKILL)
                break
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"codes": codes, "seconds": time.perf_counter() - began}


def warm() -> None:
    """Import what a training imports on its way, so that no fork has to: a fork trains, and says what it has."""
    read, write = os.pipe()
    if os.fork() == 0:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"steps": 1, "channels": [4], "attention": [False], "blocks": 1, "patch": 2, "batch": 8}
            train({"recipe": "flow", "data": "digits", "out": f"{folder}/run", "settings": settings})
        os.write(write, "\n".join(sys.modules).encode())
        os._exit(0)
    os.close(write)
    names = b"".join(iter(lambda: os.read(read, 2**16), b"")).decode().split()
    os.wait()
    for name in names:
        if name not in sys.modules and name.partition(".")[0] in ("sfumato", "matplotlib", "PIL", "torch"):
            with suppress(ImportError):
                importlib.import_module(name)


def main() -> None:
    warm()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""One-line faults of the training engine: parts of a batch, many processes, what is expected; see :mod:`mutants`."""

from __future__ import annotations

from mutants import Mutant

PARALLEL, ENGINE, KILL = "tests/test_parallel.py", "tests/test_engine.py", "tests/test_kill.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "every process draws noise for its own rows alone",
        "randomness.py",
        "return _own(self.share.of(self.source.normal(self._whole(shape))), rows)",
        "return _own(self.source.normal(shape), rows)",
        (f"{PARALLEL}::test_a_share_draws_what_it_would_get_of_the_whole",),
    ),
    Mutant(
        "a share's times are spread over the share, not over the batch",
        "training/diffusion.py",
        "even = torch.arange(share.first, share.last, dtype=torch.float64) / share.whole",
        "even = torch.arange(len(share), dtype=torch.float64) / len(share)",
        (f"{PARALLEL}::test_losses_of_shares_are_those_of_the_whole",),
    ),
    Mutant(
        "every part couples its own rows",
        "training/diffusion.py",
        "return self.parts.coupling is not None\n",
        "return False\n",
        (f"{PARALLEL}::test_losses_of_shares_are_those_of_the_whole",),
    ),
    Mutant(
        "parts of a batch weigh alike, however many rows they have",
        "training/loop.py",
        ".sum() * (len(share) / batch)",
        ".sum() / (len(shares) * processes.count)",
        (f"{PARALLEL}::test_parts_of_a_batch_give_its_gradient",),
    ),
    Mutant(
        "gradients are means of the processes' own sums",
        "training/loop.py",
        "(mean * processes.count).backward()",
        "mean.backward()",
        (f"{PARALLEL}::test_processes_train_as_one",),
    ),
    Mutant(
        "every part has the noise of the first one's rows",
        "training/loop.py",
        "losses = losses_of(rows, _source(stream_seed, share))",
        "losses = losses_of(rows, _source(stream_seed, Share(0, len(share), batch)))",
        (f"{PARALLEL}::test_parts_of_a_batch_give_its_gradient",),
    ),
    Mutant(
        "a process brings its rows to the beginning",
        "training/parallel.py",
        "whole[first : first + len(own)] = own.detach().cpu()",
        "whole[: len(own)] = own.detach().cpu()",
        (f"{PARALLEL}::test_what_processes_tell_each_other",),
    ),
    Mutant(
        "a process that is asked to stop stops alone",
        "training/engine.py",
        "return self.asked if self.processes.count > 1 else self.interrupt.asked",
        "return self.interrupt.asked and self.processes.main",
        (f"{PARALLEL}::test_one_then_two_then_one_process",),
    ),
    Mutant(
        "the average of divided weights is not gathered for a checkpoint",
        "training/ema.py",
        "own.copy_(whole(part))",
        "assert whole(part).shape == own.shape",
        (f"{PARALLEL}::test_one_then_two_then_one_process",),
    ),
    Mutant(
        "all processes write and speak",
        "launch.py",
        "return _number(_RANKS, 0) if count() > 1 else 0",
        "return 0",
        (f"{PARALLEL}::test_a_refusal_stops_all_processes", f"{PARALLEL}::test_processes_share_samples_out"),
    ),
    Mutant(
        "a run folder is filled before its configuration is written",
        "training/run.py",
        '        for left in run.glob(".config.json.*.tmp"):  # of a process that was killed while it wrote\n'
        "            left.unlink()\n",
        "        pass\n",
        (f"{KILL}::test_killed_before_it_has_a_configuration",),
    ),
    Mutant(
        "what a killed process left stays",
        "training/checkpoint.py",
        "            file.unlink(missing_ok=True)\n",
        "            assert file.exists()\n",
        (f"{KILL}::test_what_was_half_written_is_removed",),
    ),
    Mutant(
        "a checkpoint is renamed before its state is written",
        "training/files.py",
        "        yield temporary\n        for file in temporary.iterdir():",
        "        temporary.rename(path)\n        temporary = path\n        yield temporary\n"
        "        for file in temporary.iterdir():",
        (f"{KILL}::test_killed_at_random_moments", "tests/test_resume.py::test_a_folder_is_whole_or_absent"),
    ),
    Mutant(
        "memory that is given back still counts",
        "training/estimate.py",
        "self.live -= self._sizes.pop(key, 0)",
        "self._sizes.pop(key, 0)",
        (f"{ENGINE}::test_allocations_are_followed",),
    ),
    Mutant(
        "the batch that is chosen fills the limit, whatever is taken already",
        "training/estimate.py",
        "free = limit * (1 - MARGIN) - taken - expected.held - expected.fixed",
        "free = limit * (1 - MARGIN) - expected.fixed",
        (f"{ENGINE}::test_the_most_rows_that_fit",),
    ),
    Mutant(
        "layers keep what they promised to compute again",
        "training/estimate.py",
        "return self.checkpoint(self.forward, *args, use_reentrant=False, **named)",
        "return self.forward(*args, **named)",
        (f"{ENGINE}::test_layers_computed_again_give_the_same_gradients_in_less_memory",),
    ),
    Mutant(
        "batches that are read ahead come in the order in which they are asked for last",
        "data/rows.py",
        "                yield waiting.popleft().result()\n        while waiting:",
        "                yield waiting.pop().result()\n        while waiting:",
        (f"{ENGINE}::test_rows_come_in_order_and_are_read_ahead",),
    ),
    Mutant(
        "one batch more than was said is read ahead",
        "data/rows.py",
        "if len(waiting) > count:",
        "if len(waiting) > count + 1:",
        (f"{ENGINE}::test_rows_come_in_order_and_are_read_ahead",),
    ),
)

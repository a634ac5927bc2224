"""Working off units: in this process, in several, or on a Ray cluster. Outcomes are the same, and come in any order.

A worker process that dies (killed for memory, crashed in a decoder) costs the units it was at, which are given out again.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from kshot.errors import KshotError, MissingExtra, OptionError
from kshot.visual.tokenize_units import Bench, Outcome, Progress

Outcomes = Iterator[tuple[int, Outcome]]
DEATHS = 3
"""Times in a row that workers may die without one unit having been finished."""
MOST_BLOCKS = 10_000
"""Tasks that Ray is given; with more units than that, several make a task."""
AHEAD = 3
"""Units given out beforehand, a worker."""


def work_here(units: Mapping[int, str], bench: Bench, progress: Progress) -> Outcomes:
    """In this process."""
    for number, unit in units.items():
        yield number, bench.do(unit, progress)


def work_in_processes(units: Mapping[int, str], bench: Bench, progress: Progress, workers: int) -> Outcomes:
    """In several processes of this machine.

    Raises:
        OptionError: the plan cannot be sent to other processes.
        KshotError: workers die again and again.
    """
    sent = _sent(bench)
    left, deaths = dict(units), 0
    while left:
        done = 0
        try:
            for number, outcome in _pool(left, sent, progress, min(workers, len(left))):
                del left[number]
                done += 1
                yield number, outcome
        except BrokenProcessPool:
            # Units are begun in their order: those at the front were being worked on. Others must not wait for what may kill again.
            for number in list(left)[:workers]:
                left[number] = left.pop(number)
            deaths = deaths + 1 if not done else 1
            if deaths >= DEATHS:
                raise KshotError(
                    f"worker processes died {DEATHS} times in a row (too little memory, or a file that crashes a decoder); "
                    f"{len(left)} units are not done. What is done is kept: try --workers 1, or fewer"
                ) from None


def _pool(units: Mapping[int, str], sent: bytes, progress: Progress, workers: int) -> Outcomes:
    import multiprocessing

    # Forked from a process that has imported torch and nothing else: workers start at once, and inherit no threads and no GPU.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([f"{__package__}.tokenizer", "diffusers.models.autoencoders.vq_model"])
    counter, ordinal = context.Value("q", 0), context.Value("i", 0)
    shown = 0
    waiting = iter(list(units.items()))  # who is given an outcome takes its unit out of them
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(sent, counter, ordinal, workers)
    ) as pool:
        running: dict[Future[Outcome], int] = {}
        try:
            while True:
                while len(running) < AHEAD * workers and (following := next(waiting, None)) is not None:
                    running[pool.submit(_do, following[1])] = following[0]
                if not running:
                    return
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                progress(counter.value - shown)
                shown = counter.value
                broken: BrokenProcessPool | None = None
                for future in done:
                    number = running.pop(future)
                    try:
                        outcome = future.result()
                    except BrokenProcessPool as error:  # the results of others may still be in hand
                        broken = error
                        continue
                    yield number, outcome
                if broken is not None:
                    raise broken
        finally:
            for future in running:
                future.cancel()


_held: dict[str, Any] = {}
"""What a worker process was begun with."""


def _begin(sent: bytes, counter: Any, ordinal: Any, workers: int) -> None:
    with ordinal.get_lock():
        _held.update(sent=sent, counter=counter, ordinal=ordinal.value, workers=workers)
        ordinal.value += 1


def _do(unit: str) -> Outcome:
    if "bench" not in _held:
        _held["bench"] = _unpacked(_held["sent"], _held["ordinal"], _held["workers"])
    bench: Bench = _held["bench"]

    def progress(pictures: int) -> None:
        with _held["counter"].get_lock():
            _held["counter"].value += pictures

    return bench.do(unit, progress)


def work_on_ray(units: Mapping[int, str], bench: Bench, progress: Progress, workers: int, address: str) -> Outcomes:
    """On a Ray cluster, with Ray Data, which gives the units of actors that died to others.

    The machines of the cluster must see the pictures and the tokenizer under the same paths, and have kshot installed.

    Args:
        units, bench, progress: as elsewhere.
        workers: actors; each takes a CPU, and a GPU where the cluster has some.
        address: ``auto`` for the cluster of this machine, ``local`` for a new one in this machine, or an address.

    Raises:
        MissingExtra: Ray is not installed.
        OptionError: there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("ray", "ray", "tokenizing on a cluster") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except ConnectionError as error:
            raise OptionError(f"no Ray cluster at {address!r}: {error} (start one with `ray start --head`)") from None
    sent = ray.put(_sent(bench))
    gpu = bench.device == "cuda" and ray.cluster_resources().get("GPU", 0) >= workers
    items = [{"number": number, "unit": unit} for number, unit in units.items()]
    actor: Any = Actor
    needs: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": 1}
    done = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS)).map(
        actor,
        fn_constructor_args=(sent,),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        **needs,
    )
    for row in done.iter_rows():
        progress(row["pictures"])
        yield int(row["number"]), Outcome(bytes(row["data"]), row["told"])


class Actor:
    """A bench in an actor of Ray.

    Args:
        sent: the bench, pickled, or a reference to that.
    """

    def __init__(self, sent: Any):
        if not isinstance(sent, bytes):
            import ray

            sent = ray.get(sent)
        self.bench = _unpacked(sent, 0, 1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        seen = 0

        def progress(pictures: int) -> None:
            nonlocal seen
            seen += pictures

        outcome = self.bench.do(row["unit"], progress)
        return {"number": row["number"], "data": outcome.data, "told": outcome.told, "pictures": seen}


def _sent(bench: Bench) -> bytes:
    """The bench as it travels to the processes that this one starts: in memory, as multiprocessing sends things; no file is pickled.

    Raises:
        OptionError: it cannot; its pictures are made by functions, for example.
    """
    assert isinstance(bench.tokenizer, str)
    try:
        return pickle.dumps(replace(bench, known={}))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise OptionError(
            f"these sentences cannot be sent to other processes ({error}): use one process, or pictures in files"
        ) from None


def _unpacked(sent: bytes, ordinal: int, workers: int) -> Bench:
    """The bench in a worker: GPUs are dealt out in turn, and CPU threads are shared."""
    import torch

    bench: Bench = pickle.loads(sent)
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if bench.device == "cuda":
        bench = replace(bench, device=f"cuda:{ordinal % max(1, torch.cuda.device_count())}")
    return bench


def usual_threads(workers: int) -> int:
    """Threads that decode pictures, a worker, where nothing else is said."""
    return max(1, min(8, (os.cpu_count() or 1) // max(1, workers)))

"""One function over many jobs on all CPUs, in threads: PIL lets others run while it decodes, resizes and encodes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from sanbench.data.loading import available_cpus

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], threads: int | None = None) -> Iterator[tuple[Job, Result]]:
    """(job, work(job)) as they are finished. What interrupts the caller, or a failure, ends after the jobs that have begun."""
    with ThreadPoolExecutor(threads or available_cpus()) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

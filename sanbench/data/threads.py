"""One function over many jobs in threads on all CPUs: PIL releases the GIL while it decodes, resizes and encodes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from sanbench.data.loading import available_cpus

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], threads: int | None = None) -> Iterator[tuple[Job, Result]]:
    """(job, work(job)) in the order of their end. After an exception no further job is begun."""
    with ThreadPoolExecutor(threads or available_cpus()) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

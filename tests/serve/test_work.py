"""Questions under way: what is given up leaves, and errors are those of the answer."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from trakstore.serve.bodies import BadRequestError
from trakstore.serve.current_query import CurrentQuery
from trakstore.serve.daemon_threads import DaemonThreads
from trakstore.serve.limits import Limits
from trakstore.serve.metrics import Metrics
from trakstore.serve.question import Question
from trakstore.serve.work import Work


def work_of(stages: Any, **limits: Any) -> Work:
    query: Any = SimpleNamespace(stages=stages)
    return Work(CurrentQuery(query), Limits(**limits), Metrics())


async def answered(work: Work, question: Question) -> list[Any]:
    return [one async for one in work.stages(question, 1)]


def test_a_question_that_is_given_up_is_not_kept() -> None:
    go_on = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        go_on.wait(20)
        yield 1

    async def main() -> Any:
        work = work_of(slow, seconds=0.2, threads=1)
        first = asyncio.create_task(answered(work, Question(target=1)))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(answered(work, Question(text="long " * 1000)))
        await asyncio.sleep(0.05)
        assert len(work._threads._queue) == 1
        ends = await asyncio.gather(first, waiting, return_exceptions=True)
        assert all(isinstance(one, BadRequestError) and one.status == 503 for one in ends)
        assert work.metrics.waiting == 1  # the one that a thread is at
        assert not work._threads._queue
        go_on.set()
        work.close()

    asyncio.run(main())


def test_a_timeout_of_the_answer_is_an_error_of_its_own() -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise TimeoutError("the place of the store does not answer")

    with pytest.raises(TimeoutError, match="does not answer"):
        asyncio.run(answered(work_of(failing), Question(target=1)))


def test_threads_run_in_order_and_end_when_closed() -> None:
    threads, done, go_on = DaemonThreads(1, "some"), list[int](), threading.Event()
    ended = threading.Event()
    functions = [lambda: go_on.wait(20), lambda: done.append(1), lambda: done.append(2), ended.set]
    for one in functions:
        threads.submit(one)
    assert threads.cancel(functions[1])
    assert not threads.cancel(functions[1])
    go_on.set()
    assert ended.wait(20)
    assert done == [2]
    assert all(one.daemon for one in threads._threads) and len(threads._threads) == 1
    threads.close()
    threads._threads[0].join(20)
    assert not threads._threads[0].is_alive()

"""``trakstore serve``: a service that answers questions about samples while one waits."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

from typer import Option

import trakstore
from trakstore.cli.output import console, print_json
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.cli.uncollected import uncollected
from trakstore.report.extras import need_extra


@with_request("learning_rate", "allow_other_weights")
def serve(
    job: Annotated[
        str | None,
        Option(metavar="JOB", help="jobs.py:name, whose models answer about new samples."),
    ] = None,
    render: Annotated[
        str | None,
        Option(metavar="FUNCTION", help="file.py:name that shows a sample, as for report."),
    ] = None,
    prepare: Annotated[
        str | None,
        Option(
            metavar="FUNCTION",
            help="file.py:name that makes a sample of a dict with text, image or sample, and label.",
        ),
    ] = None,
    index: Annotated[
        bool, Option("--index", help="Ask the index that `trakstore index` built.")
    ] = False,
    device: Annotated[
        str | None, Option(metavar="DEVICE", help="cpu or cuda; default: a GPU if there is.")
    ] = None,
    host: Annotated[
        str,
        Option(
            metavar="ADDRESS", help="Address to listen at; others than this machine need --token."
        ),
    ] = ("127.0.0.1"),
    port: Annotated[
        int, Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8765,
    token: Annotated[
        str | None,
        Option(
            metavar="TEXT",
            envvar="TRAKSTORE_TOKEN",
            help="Text that requests must bring, to keep others out.",
        ),
    ] = None,
    seconds: Annotated[
        float, Option(metavar="SECONDS", min=0.1, help="Most seconds to an answer.")
    ] = 60.0,
    waiting: Annotated[
        int, Option(metavar="N", min=1, help="Most questions that wait at once.")
    ] = 512,
    *,
    asked: ScoreRequest,
) -> None:
    """Answer over HTTP, and on a page, which train samples made the model do this.

    The store is only read, and what is masked or appended meanwhile is seen within seconds. POST
    /query takes {"target": id}, or text, image or sample where there is a job; GET / is the page,
    /openapi.json describes the rest. Needs the "serve" extra.
    """
    need_extra("a service", "serve", "starlette", "uvicorn", "jinja2", "PIL")
    with uncollected():
        from trakstore.serve.access import Access
        from trakstore.serve.limits import Limits
        from trakstore.serve.query import Query
        from trakstore.serve.server import address_of, listen, run
        from trakstore.serve.work import is_answering

    access = Access(host, token or None)
    with asked.workplace(), listen(host, port) as taken:
        with uncollected():
            query = Query(
                asked.opened,
                job,
                targets=asked.targets,
                train=asked.train,
                epochs=asked.epochs,
                method=asked.method,
                damping=asked.damping,
                kernel=asked.kernel,  # type: ignore[arg-type]
                index=index,
                render=render,
                prepare=prepare,
                device=device,
                memory_limit=asked.memory_limit,
            )
            # Kernels are factored before it listens; new samples are tried while it does.
            query.ask(target="@0", k=1)
        # What is there now stays: later collections, during which no question goes on, pass it over.
        gc.freeze()
        address = address_of(taken, host)

        def ready() -> None:
            if asked.as_json:
                print_json({"address": address, "process": os.getpid(), "token": bool(token)})
                return
            console().print(f"serving {asked.opened.location} at {address} (Ctrl-C ends it)")
            sys.stdout.flush()

        limits = Limits(seconds=seconds, waiting=waiting)
        run(query, taken, access, limits, trakstore.__version__, ready)
    if is_answering():
        # A step of minutes holds nothing up: the process ends around it, as threads in the middle of
        # native code cannot be ended.
        sys.stdout.flush()
        os._exit(0)

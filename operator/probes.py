"""`/metrics`, `/healthz` and `/readyz` of the operator."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

# Returns what is wrong, or "".
Check = Callable[[], str]


async def serve(port: int, registry: CollectorRegistry, *, alive: Check, ready: Check) -> web.AppRunner:
    """Start answering; `cleanup()` of what is returned ends it."""

    async def metrics(request: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def answer(check: Check) -> Callable[[web.Request], object]:
        async def handle(request: web.Request) -> web.Response:
            problem = check()
            return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

        return handle

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", answer(alive))  # type: ignore[arg-type]
    application.router.add_get("/readyz", answer(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner

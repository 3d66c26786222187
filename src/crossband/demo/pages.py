"""The files of the demo's pages, as Vite built them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    import os

    from starlette.types import Scope

# Has a folder for each page, in the wheel and in a checkout.
PAGES: Final = Path(__file__).parents[1] / "pages"

_NOT_BUILT: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Crossband</title>
<style>
  :root { color-scheme: light dark }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
  code { background: #8882; padding: .1em .3em; border-radius: .2em }
</style>
<h1>The server is running, but this page has not been built</h1>
<p>The demo's pages must be built once from their sources. In a checkout of Crossband, run</p>
<p><code>make run</code></p>
<p>which builds them and starts this server. The doors work without them: <code>/ws</code>,
<code>/socket.io/</code>, <code>/events</code>, and <code>/api/status</code>.</p>
</html>
"""  # noqa: E501


class Page(StaticFiles):
    """A page's files; browsers revalidate those without a hash in their name by ETag."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        # The directory may appear while the server runs.
        super().__init__(directory=directory, html=True, check_dir=False)
        self._index = Path(directory) / "index.html"

    async def check_config(self) -> None:
        """Accept a directory that does not exist yet; then requests find nothing."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path == "." and scope["method"] in ("GET", "HEAD") and not self._index.is_file():
            return HTMLResponse(_NOT_BUILT, status_code=404, headers={"Cache-Control": "no-store"})
        response = await super().get_response(path, scope)
        # Names under assets/ contain a hash of the content (Vite).
        forever = path.startswith("assets") and response.status_code != 404
        cache = "public, max-age=31536000, immutable" if forever else "no-cache"
        response.headers.setdefault("Cache-Control", cache)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

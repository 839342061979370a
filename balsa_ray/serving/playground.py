"""The playground: a page on which to ask by hand.

Three static files. The page reads clips in the browser and asks `/v1/chat/completions` with the key that its user
types, so every limit of the endpoint holds, and nothing can be uploaded to the server or lie about on it.
"""

from importlib.resources import files
from typing import TYPE_CHECKING, get_args

from balsa_ray.prompts.render import Kind, prompts_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

SCRIPT, STYLE = "/playground.js", "/playground.css"
PATHS = ("/", SCRIPT, STYLE)
HEADERS = {
    # Nothing from elsewhere is loaded or asked, no script but ours runs, and no other site can frame the page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "permissions-policy": "microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def add_playground(app: "FastAPI", max_body_bytes: int) -> None:
    """Adds the page and its two files to an application.

    Args:
        app: The application, which answers `/v1/models` and `/v1/chat/completions`.
        max_body_bytes: Largest request that it takes, which the page says before it sends megabytes in vain.
    """
    folder = files("balsa_ray.serving")
    _add(app, "/", "text/html", page(max_body_bytes))
    _add(app, SCRIPT, "text/javascript", folder.joinpath("playground.js").read_text("utf-8"))
    _add(app, STYLE, "text/css", folder.joinpath("playground.css").read_text("utf-8"))


def page(max_body_bytes: int) -> str:
    """Returns the HTML, with an example of each kind of prompt. It tells nothing about what is served."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("balsa_ray.serving", "."), autoescape=True, undefined=StrictUndefined
    )
    examples = [prompts_of(kind)[0] for kind in get_args(Kind)]
    template = environment.get_template("playground.html.jinja")
    return template.render(examples=examples, max_body_bytes=max_body_bytes)


def _add(app: "FastAPI", path: str, media_type: str, content: str) -> None:
    from starlette.responses import Response

    async def answer(_: "Request") -> "Response":
        return Response(content, media_type=media_type, headers=HEADERS)

    app.add_route(path, answer, methods=["GET"])

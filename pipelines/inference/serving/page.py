"""The page that the server shows: static files of this folder, and nothing from elsewhere."""

from importlib.resources import files

import jinja2
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load, as browsers enforce it."""
LEAD = "Give it a sound, ask about it, and read the answer as it comes. Ask again: the sound stays."
FOOTER = "Sounds go to this server and nowhere else; it writes none of them to disk."


def page_responses() -> dict[str, Response]:
    """Return the responses of the page by their paths; without a token they hold nothing secret."""
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("pipelines.inference.serving"), jinja2.PackageLoader("pipelines.interface")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("talk.html").render(title="Talk to a run", lead=LEAD, footer=FOOTER)
    script = (files("pipelines.inference.serving") / "templates" / "talk.js").read_bytes()
    return {
        "/": Response(page, media_type="text/html", headers=headers),
        "/talk.js": Response(script, media_type="text/javascript", headers=headers),
    }

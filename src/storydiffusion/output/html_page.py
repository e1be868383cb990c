"""Self-contained HTML pages of which only the own scripts and styles run.

A template writes a script or a style as `{% set style %}…{% endset %}`, allows it in its content security policy by
`{{ style | csp_hash }}`, and writes it between its tags as `{{ style }}`.
"""

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(package: str, template: str, **values: Any) -> str:
    """Render a template of the package's folder templates/; text in `values` is escaped."""
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["csp_hash"] = csp_hash
    return environment.get_template(template).render(**values)


def csp_hash(source: str) -> str:
    """Return the expression that allows an inline script or style of exactly this text: `'sha256-…'`."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(str(source).encode()).digest()).decode()}'"

"""JSON as it is kept in files that people read and compare: strict, with a line for each list of numbers."""

import json
import re
from typing import Any


def text(document: Any) -> str:
    """The document as text; ValueError where it has an infinity or a NaN."""
    indented = json.dumps(document, indent=1, allow_nan=False)
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", indented) + "\n"

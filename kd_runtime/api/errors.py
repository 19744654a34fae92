"""What is wrong with a manifest, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd_runtime.api.failures import SettingsError

_SHOWN = 60
_USER_OF_URL = re.compile(r"(?<=://)[^/?#\s]*@")


@dataclass(frozen=True)
class FieldError:
    """One field that is wrong (or, as a warning, without effect)."""

    path: str
    """Such as spec.stages[2].capture.topK."""
    value: Any
    """What stands there; None where nothing does, or where it is an object too large to show. Of a URL, a user is not shown."""
    message: str
    """What is wrong with it."""
    remedy: str
    """What to do."""

    def __str__(self) -> str:
        shown = "" if self.value is None or isinstance(self.value, dict | list) else f"{_short(self.value)} "
        ending = f"; {self.remedy}" if self.remedy else ""
        return f"{self.path}: {shown}{self.message}{ending}"


def _short(value: Any) -> str:
    text = _USER_OF_URL.sub("***@", value if isinstance(value, str) and value else json.dumps(value))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class ManifestErrors(SettingsError):
    """Everything that is wrong with a document, at once."""

    def __init__(self, errors: Sequence[FieldError], source: str = "") -> None:
        self.errors = list(errors)
        self.source = source
        prefix = f"{source}: " if source else ""
        super().__init__("\n".join(f"{prefix}{error}" for error in self.errors))

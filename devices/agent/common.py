"""What every part of the agent needs: how it refuses, and how it reads the small files of the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

ROOT = Path("/")


class RefusedError(Exception):
    """What was asked cannot be done: ``kind`` is for the program on the other side, the rest for a person."""

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy


def text(file: Path) -> str:
    """Return what a small file holds, without NUL bytes and white space around it; nothing where it is not there."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""


def number(file: Path) -> Optional[float]:
    """Return the number in a small file, None where there is none."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None

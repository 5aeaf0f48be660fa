"""Draw the pictures of the README from a finished run: ``python docs/make_pictures.py RUN``.

The terminal is drawn by the code of the live display from the events of the run. The report is photographed by
headless Chromium, which has to be installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from edgelean.cli.live import Scene, advance, draw

DOCS = Path(__file__).parent
CHROMIUM = (
    "chromium --headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --hide-scrollbars --force-device-scale-factor=1"
)


def draw_terminal(run: Path, picture: Path) -> None:
    """Draw what the live display showed just after the last cut."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    last_cut = max(index for index, event in enumerate(events) if event["event"] == "cut")
    scene = Scene()
    for event in events[: last_cut + 12]:
        scene = advance(scene, event)
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=110, file=nowhere, force_terminal=True)
        console.print(draw(scene, console))
        picture.write_text(console.export_svg(title="edgelean fit --profile jetson-orin"))


def photograph_report(run: Path, picture: Path) -> None:
    """Photograph the top of the report."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *CHROMIUM.split(),
            f"--user-data-dir={profile}",
            f"--screenshot={picture}",
            "--window-size=1200,1500",
            (run / "report.html").resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Draw both pictures beside this file."""
    run = Path(sys.argv[1])
    draw_terminal(run, DOCS / "terminal.svg")
    photograph_report(run, DOCS / "report.png")


if __name__ == "__main__":
    main()

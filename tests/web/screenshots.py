"""Takes the pictures of the page that the documents show: `python -m tests.web.screenshots`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

from local.sample import sample
from local.stack import REPOSITORY, emulators
from local.storage.npm import find_node, install

IMAGES = REPOSITORY / "docs" / "images"
HERE = Path(__file__).parent


async def take() -> int:
    """Take the pictures, and return an exit code."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is missing: apt-get install chromium", file=sys.stderr)
        return 1
    install(HERE.parent / "js", "the JavaScript clients")
    IMAGES.mkdir(exist_ok=True)
    async with emulators(managed_identity=True) as stack, sample(stack, {}) as page:
        addresses = json.dumps({"chromium": chromium, "page": page.url})
        process = await asyncio.create_subprocess_exec(
            *(find_node()[0], HERE / "screenshots.mjs", IMAGES),
            env={**os.environ, "ADDRESSES": addresses},
        )
        return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(take()))

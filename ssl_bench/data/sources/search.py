"""Finding the image files in a folder, and counting all others."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from ssl_bench.data.images import extensions
from ssl_bench.errors import UserError, of_system
from ssl_bench.utils.files import readable


def image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Find the image files below a folder, and count the other files.

    Images are recognised by extension, see `images.extensions`. Links to files and folders are
    followed, but each folder is entered only once, preferably not through a link. Links that lead
    back up, and special files, are left out.

    Returns:
        The images, sorted, and the number of files left out by extension, including "broken link",
        "looping link" and "special file". Hidden files and folders, whose names begin with a dot,
        are not counted.

    Raises:
        UserError: a folder cannot be read.
    """
    wanted = extensions()
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    folders, linked = [folder], list[Path]()
    while folders or linked:
        here = folders.pop() if folders else linked.pop(0)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot read folder {readable(here)}: {of_system(error)}") from error
        for entry in entries:
            path = here / entry.name
            if entry.name[0] == ".":
                continue
            is_link = entry.is_symlink()
            if is_link and not path.exists():
                left_out["broken link"] += 1
            elif entry.is_dir():
                if not is_link:
                    folders.append(path)
                elif here.resolve().is_relative_to(path.resolve()):
                    left_out["looping link"] += 1
                else:
                    linked.append(path)
            elif not entry.is_file():
                left_out["special file"] += 1
            elif path.suffix.lower() in wanted:
                found.append(path)
            else:
                left_out[readable(path.suffix.lower())] += 1
    return sorted(found), left_out

"""What mkdocs does to the pages: README.md becomes the first one, and links to code become names of files."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#)[^)\s]+)\)")
REFERENCE = re.compile(r"^\[[^\]]+\]: \.\./.*\n", re.MULTILINE)


def on_files(files, config):
    """README.md as index.md, seen from docs/."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """A link that leads out of docs/, such as one to dvc.yaml, has no page: its text stays."""

    def kept(link: re.Match) -> str:
        target = (ROOT / "docs" / page.file.src_uri).parent / link[2].partition("#")[0]
        inside = target.resolve().is_relative_to(ROOT / "docs") and target.is_file()
        return link[0] if inside or files.get_file_from_path(link[2]) else link[1]

    return LINK.sub(kept, REFERENCE.sub("", markdown))

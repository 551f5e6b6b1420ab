"""Sentences of Markdown pages that are too long to read.

    python -m tools.sentences [PAGE ...]

prints every sentence of more than 30 words of the pages; of README.md, CONTRIBUTING.md and docs/*.md if none is given.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_WORDS = 30
# Where a sentence ends in the middle of a paragraph: after its stop and a closing bracket or emphasis
_END = re.compile(r"(?<=[.!?])[)*_\"”’]*\s+")
_ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|et al|Fig|Figs|No|vs|approx|cf|Dr|eq)\.", re.IGNORECASE)


def pages() -> list[Path]:
    """Return the pages for people: README, CONTRIBUTING and the documents."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def paragraphs(text: str) -> list[str]:
    """Return the running text of a Markdown page: paragraphs, items of lists and cells of tables, without code."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "\n", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "\n", text, flags=re.S)
    found, current = [], []

    def end() -> None:
        if current:
            found.append(" ".join(current))
            current.clear()

    blank = True
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or line.startswith("#") or set(stripped) <= set("|-: "):
            end()
            blank = True
            continue
        # Indented after a blank line: code, unless it goes on with an item of a list.
        if line.startswith("    ") and blank:
            end()
            continue
        blank = False
        if stripped.startswith("|"):
            end()
            found += [cell.strip() for cell in re.split(r"(?<!\\)\|", stripped.strip("|"))]
            continue
        if re.match(r"([-*+]|\d+\.)\s|>", stripped):
            end()
            stripped = re.sub(r"^([-*+]|\d+\.|>)\s*", "", stripped)
        current.append(stripped)
    end()
    return found


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph."""
    plain = re.sub(r"`[^`]*`", "Code", paragraph)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    plain = _ABBREVIATIONS.sub(lambda found: found[0][:-1], plain)
    return [part.strip() for part in _END.split(plain) if part.strip()]


def long_sentences(text: str, most: int = MAX_WORDS) -> list[str]:
    """Return the sentences of a page with more words than `most`; a word has a letter."""
    return [
        sentence
        for paragraph in paragraphs(text)
        for sentence in sentences(paragraph)
        if sum(any(letter.isalpha() for letter in word) for word in sentence.split()) > most
    ]


def main(names: list[str]) -> int:
    """Print the long sentences of pages, and return how many there are."""
    count = 0
    for path in map(Path, names) if names else pages():
        for sentence in long_sentences(path.read_text()):
            count += 1
            print(f"{path.name} ({len(sentence.split())}): {sentence}")
    print(f"{count} sentences of more than {MAX_WORDS} words")
    return count


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)

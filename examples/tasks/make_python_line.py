"""Write python_line.jsonl: which line of code comes next, from text that no model was trained on.

    python examples/tasks/make_python_line.py

Contexts and right answers are lines of ``examples/tiny-llada/heldout.jsonl``; the wrong answers are
three other lines of the same file that stand as deep and are nearest in length.
"""

import ast
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent
HELD_OUT = FOLDER.parent / "tiny-llada" / "heldout.jsonl"
EACH, LINES = 12, 5
"""Questions from each file, and lines of a context."""


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that are code: no comment, no documentation, no part of a string."""
    lines = text.split("\n")
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            inside |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
    full = {n for n, line in enumerate(lines) if 12 <= len(line.strip()) <= 60}
    return {n for n in full - inside if not lines[n].lstrip().startswith(("#", '"', "'"))}


def depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def questions(text: str, draw: random.Random) -> list[dict[str, object]]:
    lines = text.split("\n")
    usable = sorted(code_lines(text))
    asked = [n for n in usable if n >= LINES and all(lines[n - k].strip() for k in (1, 2))]
    found: list[dict[str, object]] = []
    for number in draw.sample(asked, len(asked)):
        right = lines[number]
        others = {lines[n] for n in usable if depth(lines[n]) == depth(right)} - {right}
        wrong = sorted(others, key=lambda line: (abs(len(line) - len(right)), line))[:3]
        if len(wrong) == 3 and len(found) < EACH:
            choices = draw.sample([right, *wrong], 4)
            context = "\n".join(lines[number - LINES : number]) + "\n"
            found.append({"context": context, "choices": choices, "answer": choices.index(right)})
    return found


def main() -> None:
    draw = random.Random(0)
    texts = [json.loads(line)["text"] for line in HELD_OUT.read_text("utf-8").splitlines()]
    rows = []
    for text in texts:
        try:
            rows += questions(text, draw)
        except SyntaxError:  # a file that was cut
            continue
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (FOLDER / "python_line.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(rows)} questions")


if __name__ == "__main__":
    main()

"""Print the README's code block that follows the comment `<!-- command: NAME -->`.

What CI runs is taken out of the README, so that the two cannot drift apart. Usage: readme_command.py NAME [README]
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def readme_command(name: str, readme: Path = README) -> str:
    """The one code block marked NAME, line continuations joined. Raises SystemExit where there is not exactly one."""
    pattern = rf"<!-- command: {re.escape(name)} -->\s*```(?:bash|sh)\n(.*?)\n```"
    blocks = re.findall(pattern, readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    if len(blocks) != 1:
        sys.exit(f"{readme}: {len(blocks)} code blocks are marked <!-- command: {name} -->; mark exactly one")
    return blocks[0].replace("\\\n", " ").strip()


if __name__ == "__main__":
    sys.stdout.write(readme_command(sys.argv[1], *map(Path, sys.argv[2:3])) + "\n")

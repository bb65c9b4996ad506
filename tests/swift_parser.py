"""Parses Swift, which nothing here compiles."""

from __future__ import annotations

from collections.abc import Iterator

import tree_sitter
import tree_sitter_swift


def faults(text: str) -> list[str]:
    """List the lines that a Swift parser does not take."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))

    def walk(node: tree_sitter.Node) -> Iterator[str]:
        if node.type == "ERROR" or node.is_missing:
            yield text.splitlines()[node.start_point[0]]
        for child in node.children:
            yield from walk(child)

    return list(walk(parser.parse(text.encode()).root_node))
